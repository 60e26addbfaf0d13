#include <pybind11/stl.h>

#include <array>

#include "lista/host_gradients.hpp"

namespace py = pybind11;
using std::uintptr_t;

namespace lk {
namespace lista {
namespace {

// What stays the same from call to call: sizes, choices and the addresses of the parameters, in the order of
// kernels/lista/problem.py without x and z_0. Whoever holds a plan keeps the parameters alive.
struct Plan {
  Lista problem{};
  std::vector<int64_t> select;
  int type;

  Plan(int type, int64_t features, int64_t components, int64_t layers, int flags,
       const std::array<uintptr_t, 6>& parameters, std::vector<int64_t> select)
      : select(std::move(select)), type(type) {
    const auto flag = [flags](int bit) { return (flags >> bit & 1) != 0; };
    Lista& p = problem;
    p.features = features;
    p.components = components;
    p.layers = layers;
    p.positive = flag(0);
    p.layered_weight = flag(1);
    p.layered_recurrent = flag(2);
    p.layered_step = flag(3);
    p.layered_threshold = flag(4);
    p.wide_threshold = flag(5);
    const void** const to[] = {&p.weight, &p.threshold, &p.bias, &p.recurrent, &p.dictionary, &p.step};
    for (size_t i = 0; i < parameters.size(); ++i) *to[i] = at(parameters[i]);
  }

  Call call(int threads, int64_t rows, uintptr_t x, uintptr_t initial) const {
    Call call{problem, select.empty() ? nullptr : select.data(), type, threads};
    call.problem.rows = rows;
    call.problem.x = at(x);
    call.problem.initial = at(initial);
    return call;
  }
};

std::unique_ptr<Tape> forward(const Plan& plan, int threads, int64_t rows, uintptr_t x, uintptr_t initial,
                              uintptr_t out, bool with_tape, bool with_drive) {
  const Call call = plan.call(threads, rows, x, initial);
  std::unique_ptr<Tape> tape;
  without_gil([&] {
    const int64_t tile_rows = tile_rows_of(call);
    if (with_tape) tape = std::make_unique<Tape>(rows, call.problem.layers, tile_rows, with_drive);
    run_forward(call, tile_rows, at(out), tape.get());
  });
  return tape;
}

// `gradients`: addresses in the order of kernels/lista/problem.py. Without a tape that holds what they
// need the forward pass runs again.
void backward(const Plan& plan, int threads, int64_t rows, uintptr_t x, uintptr_t initial, Tape* tape,
              uintptr_t upstream, const std::array<uintptr_t, 8>& gradients) {
  const Call call = plan.call(threads, rows, x, initial);
  const auto& g = gradients;
  const Gradients wanted{at(g[0]), at(g[1]), at(g[2]), at(g[3]), at(g[4]), at(g[5]), at(g[6]), at(g[7])};
  without_gil([&] {
    std::unique_ptr<Tape> again;
    const bool drive = wanted.step != nullptr;
    const bool enough = tape != nullptr && (tape->with_drive || !drive);
    if (!enough) {
      const int64_t tile_rows = tile_rows_of(call);
      again = std::make_unique<Tape>(rows, call.problem.layers, tile_rows, drive);
      run_forward(call, tile_rows, nullptr, again.get());
    }
    Tape& codes = enough ? *tape : *again;
    if (plan.type == kFloat64)
      Backward<double>(call, codes, at<const double>(upstream), wanted).run();
    else
      Backward<float>(call, codes, at<const float>(upstream), wanted).run();
  });
}

std::vector<int64_t> nonzeros_by_layer(const Tape& tape) {
  std::vector<int64_t> counts;
  for (int64_t layer = 0; layer <= tape.layers; ++layer) counts.push_back(tape.nonzeros(layer));
  return counts;
}

}  // namespace
}  // namespace lista

void bind_lista(py::module_& m) {
  using namespace lista;
  py::class_<Tape>(m, "ListaTape").def_property_readonly("nonzeros", &nonzeros_by_layer);
  py::class_<Plan>(m, "ListaPlan")
      .def(py::init<int, int64_t, int64_t, int64_t, int, const std::array<uintptr_t, 6>&, std::vector<int64_t>>())
      .def("forward", &forward)
      .def("backward", &backward);
}

}  // namespace lk
