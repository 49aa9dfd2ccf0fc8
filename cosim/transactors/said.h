// What transactors say of what is under way: nothing of what is empty.
#pragma once
#include <cstddef>
#include <string>
#include <vector>

namespace memnic {

using Said = std::vector<std::string>;

// "1 frame", "2 frames"; "accesses" of an "access".
inline std::string count(size_t number, const std::string& what) {
  return std::to_string(number) + " " + what + (number == 1 ? "" : what.back() == 's' ? "es" : "s");
}

}  // namespace memnic
