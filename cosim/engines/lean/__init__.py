"""The transactors of `cosim/transactors`, file by file, in Python: for simulators that C++ does not reach."""
