// Helpers of all bindings. Tensors arrive as addresses and strides, checked in Python; nothing here links torch.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <exception>

#include "host/dispatch.hpp"
#include "host/keywords.hpp"
#include "host/parts.hpp"
#include "host/threads.hpp"

namespace lk {

// Runs f without the GIL. pybind11's guard is not used: where a daemon thread comes back to an interpreter that is
// shutting down, Python ends the thread by unwinding, which must not pass through a destructor.
template <class F>
inline void without_gil(F f) {
  PyThreadState* state = PyEval_SaveThread();
  try {
    f();
  } catch (const std::exception&) {
    PyEval_RestoreThread(state);
    throw;
  }
  PyEval_RestoreThread(state);
}

}  // namespace lk
