#include "host/bind.hpp"
#include "lista/host_gradients.hpp"

namespace lk {
namespace lista {

// What stays the same from call to call. Whoever holds a plan keeps the parameters alive.
struct Plan : Lista {
  Dtype dtype;
  std::vector<int64_t> select;  // of each layer, or empty

  Call call(int threads, int64_t rows, const void* x, const void* initial) const {
    Call call{*this, select.empty() ? nullptr : select.data(), dtype, threads};
    call.problem.rows = rows;
    call.problem.x = x;
    call.problem.initial = initial;
    return call;
  }
};

}  // namespace lista

template <>
struct FieldsOf<lista::Plan> {
  using P = lista::Plan;
  static constexpr auto list =
      std::make_tuple(Field{"dtype", &P::dtype}, Field{"features", &P::features}, Field{"components", &P::components},
                      Field{"layers", &P::layers}, Field{"positive", &P::positive},
                      Field{"layered_weight", &P::layered_weight}, Field{"layered_recurrent", &P::layered_recurrent},
                      Field{"layered_step", &P::layered_step}, Field{"layered_threshold", &P::layered_threshold},
                      Field{"wide_threshold", &P::wide_threshold}, Field{"weight", &P::weight},
                      Field{"threshold", &P::threshold}, Field{"bias", &P::bias}, Field{"recurrent", &P::recurrent},
                      Field{"dictionary", &P::dictionary}, Field{"step", &P::step}, Field{"select", &P::select});
};

template <>
struct FieldsOf<lista::Gradients> {
  using G = lista::Gradients;
  static constexpr auto list =
      std::make_tuple(Field{"x", &G::x}, Field{"weight", &G::weight}, Field{"threshold", &G::threshold},
                      Field{"bias", &G::bias}, Field{"recurrent", &G::recurrent}, Field{"dictionary", &G::dictionary},
                      Field{"step", &G::step}, Field{"initial", &G::initial});
};

namespace lista {
namespace {

// The least value; infinity of none, NaN where one is infinite or NaN.
double least_value(Dtype dtype, int64_t n, const void* x) {
  double least;
  without_gil([&] { least = active<ListaKernels>().least[dtype == kFloat64 ? 1 : 0](n, x); });
  return least;
}

std::unique_ptr<Tape> forward(const Plan& plan, int threads, int64_t rows, const void* x, const void* initial,
                              void* out, bool with_tape, bool with_drive) {
  const Call call = plan.call(threads, rows, x, initial);
  std::unique_ptr<Tape> tape;
  without_gil([&] {
    const int64_t tile_rows = tile_rows_of(call);
    if (with_tape) tape = std::make_unique<Tape>(rows, call.problem.layers, tile_rows, with_drive);
    run_forward(call, tile_rows, out, tape.get());
  });
  return tape;
}

// Without a tape that holds what the gradients need the forward pass runs again.
void backward(const Plan& plan, int threads, int64_t rows, const void* x, const void* initial, Tape* tape,
              const void* upstream, const Gradients& gradients) {
  const Call call = plan.call(threads, rows, x, initial);
  without_gil([&] {
    std::unique_ptr<Tape> again;
    const bool drive = gradients.step != nullptr;
    const bool enough = tape != nullptr && (tape->with_drive || !drive);
    if (!enough) {
      const int64_t tile_rows = tile_rows_of(call);
      again = std::make_unique<Tape>(rows, call.problem.layers, tile_rows, drive);
      run_forward(call, tile_rows, nullptr, again.get());
    }
    Tape& codes = enough ? *tape : *again;
    if (plan.dtype == kFloat64)
      Backward<double>(call, codes, static_cast<const double*>(upstream), gradients).run();
    else
      Backward<float>(call, codes, static_cast<const float*>(upstream), gradients).run();
  });
}

pybind11::list nonzeros_by_layer(const Tape& tape) {
  pybind11::list counts;
  for (int64_t layer = 0; layer <= tape.layers; ++layer) counts.append(tape.nonzeros(layer));
  return counts;
}

}  // namespace
}  // namespace lista

void bind_lista(pybind11::module_& m) {
  using namespace lista;
  pybind11::class_<Tape>(m, "ListaTape").def_property_readonly("nonzeros", &nonzeros_by_layer);
  define_struct<Plan>(m, "ListaPlan");
  define_struct<Gradients>(m, "ListaGradients");
  define<&forward>(m, "lista_forward", {"threads", "rows", "x", "initial", "out", "with_tape", "with_drive"});
  define<&least_value>(m, "least_value", {"dtype", "n", "x"});
  define<&backward>(m, "lista_backward", {"threads", "rows", "x", "initial", "tape", "upstream", "gradients"});
}

}  // namespace lk
