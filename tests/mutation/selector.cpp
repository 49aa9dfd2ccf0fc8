// Which mutant lives, as the environment says.
#include <cstdlib>

extern "C" int memnic_mutant() {
  const char* const number = std::getenv("MEMNIC_MUTANT");
  return number ? std::atoi(number) : 0;
}
