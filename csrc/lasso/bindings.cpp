#include "host/bind.hpp"
#include "lasso/parts.hpp"

namespace lk {

template <>
struct FieldsOf<LassoProblem> {
  using P = LassoProblem;
  static constexpr auto list =
      std::make_tuple(Field{"dtype", &P::dtype}, Field{"algorithm", &P::algorithm}, Field{"positive", &P::positive},
                      Field{"rows", &P::rows}, Field{"features", &P::features}, Field{"components", &P::components},
                      Field{"max_iter", &P::max_iter}, Field{"tolerance", &P::tolerance}, Field{"largest", &P::largest},
                      Field{"scaled", &P::scaled}, Field{"curvature", &P::curvature}, Field{"x", &P::x},
                      Field{"dictionary", &P::dictionary}, Field{"panels", &P::panels}, Field{"gram", &P::gram},
                      Field{"alpha", &P::alpha}, Field{"alpha_stride", &P::alpha_stride}, Field{"init", &P::init});
};

namespace {

template <class F>
void each_part(const LassoProblem& p, int64_t rows, int threads, F f) {
  const int64_t bytes = active<LassoKernels>().workspace(p.features, p.components);
  each_part_of_rows(rows, (p.features + 16) * p.components, threads, bytes, f);
}

// The dictionary with its columns padded, and transposed in panels; see LassoProblem.
template <class T>
void pack(const LassoProblem& p, const T* dictionary, T* atoms, T* panels) {
  const int64_t width = padded(p.features);
  std::fill(atoms, atoms + p.components * width, T(0));
  std::fill(panels, panels + padded(p.components) * p.features, T(0));
  for (int64_t k = 0; k < p.components; ++k) {
    for (int64_t f = 0; f < p.features; ++f) {
      const T value = dictionary[k * p.features + f];
      atoms[k * width + f] = value;
      panels[(k / 16 * p.features + f) * 16 + k % 16] = value;
    }
  }
}

// torch is not used: its threads do not survive fork, and its sums may depend on their number.
void prepare(Dtype dtype, int threads, int64_t features, int64_t components, const void* dictionary, void* atoms,
             void* panels, void* gram) {
  LassoProblem p{};
  p.features = features;
  p.components = components;
  p.dictionary = atoms;
  p.panels = panels;
  const auto kernel = active<LassoKernels>().gram[dtype];
  without_gil([&] {
    if (dtype == kFloat64)
      pack(p, static_cast<const double*>(dictionary), static_cast<double*>(atoms), static_cast<double*>(panels));
    else
      pack(p, static_cast<const float*>(dictionary), static_cast<float*>(atoms), static_cast<float*>(panels));
    each_part(p, components, threads,
              [&](int64_t row0, int64_t row1, void* workspace) { kernel(p, row0, row1, gram, workspace); });
  });
}

void encode(const LassoProblem& given, int threads, void* codes, void* gap) {
  LassoProblem p = given;
  p.codes = codes;
  p.gap = gap;
  const auto kernel = active<LassoKernels>().encode[p.dtype];
  without_gil([&] {
    each_part(p, p.rows, threads,
              [&](int64_t row0, int64_t row1, void* workspace) { kernel(p, row0, row1, workspace); });
  });
}

// Returns how many rows have a gap above the share `tolerance` of 1/2 ||x||^2.
template <class T>
int64_t count_far(const T* x, const T* gap, int64_t rows, int64_t features, double tolerance) {
  int64_t count = 0;
  for (int64_t row = 0; row < rows; ++row) {
    if (!(gap[row] > 0)) continue;
    double norm2 = 0;
    for (int64_t f = 0; f < features; ++f) {
      const double v = static_cast<double>(x[row * features + f]);
      norm2 += v * v;
    }
    count += static_cast<double>(gap[row]) > tolerance * 0.5 * norm2;
  }
  return count;
}

int64_t far_rows(Dtype dtype, int64_t rows, int64_t features, double tolerance, const void* x, const void* gap) {
  int64_t count = 0;
  without_gil([&] {
    count = dtype == kFloat64
                ? count_far(static_cast<const double*>(x), static_cast<const double*>(gap), rows, features, tolerance)
                : count_far(static_cast<const float*>(x), static_cast<const float*>(gap), rows, features, tolerance);
  });
  return count;
}

}  // namespace

void bind_lasso(pybind11::module_& m) {
  define_enum<LassoAlgorithm>(m, "LassoAlgorithm", {"ista", "fista", "cd"});
  define_struct<LassoProblem>(m, "LassoProblem");
  define<&prepare>(m, "lasso_prepare",
                   {"dtype", "threads", "features", "components", "dictionary", "atoms", "panels", "gram"});
  define<&encode>(m, "lasso_encode", {"threads", "codes", "gap"});
  define<&far_rows>(m, "lasso_far_rows", {"dtype", "rows", "features", "tolerance", "x", "gap"});
}

}  // namespace lk
