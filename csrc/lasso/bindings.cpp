#include <memory>

#include "host/bind.hpp"
#include "lasso/problem.hpp"

namespace py = pybind11;
using std::uintptr_t;

namespace lk {
namespace {

// Runs f(row0, row1, room) for parts of the rows, which do not depend on one another. Rows take unequal time, so a
// thread gets several parts; a part has enough rows to be worth its room.
template <class F>
void each_part(const Lasso& p, int64_t rows, int threads, F f) {
  const int64_t most = 8 * kLassoRows, share = rows / (4 * std::max(threads, 1)) / kLassoRows * kLassoRows;
  const int64_t step = std::max<int64_t>(std::min(share, most), kLassoRows);
  const int64_t bytes = active<LassoKernels>().room(p.features, p.components);
  parallel_for((rows + step - 1) / step, worthwhile_threads(threads, rows * (p.features + 16) * p.components),
               [&](int64_t i) {
                 const std::unique_ptr<char[]> room(new char[static_cast<size_t>(bytes)]);
                 f(i * step, std::min((i + 1) * step, rows), room.get());
               });
}

// The dictionary with its columns padded, and transposed in panels; see Lasso.
template <class T>
void pack(int64_t features, int64_t components, const T* dictionary, T* atoms, T* panels) {
  const int64_t width = padded(features);
  std::fill(atoms, atoms + components * width, T(0));
  std::fill(panels, panels + padded(components) * features, T(0));
  for (int64_t k = 0; k < components; ++k) {
    for (int64_t f = 0; f < features; ++f) {
      const T value = dictionary[k * features + f];
      atoms[k * width + f] = value;
      panels[(k / 16 * features + f) * 16 + k % 16] = value;
    }
  }
}

// Not by torch, whose own threads do not survive fork, and whose sums may depend on their number.
void prepare(int type, int threads, int64_t features, int64_t components, uintptr_t dictionary, uintptr_t atoms,
             uintptr_t panels, uintptr_t gram) {
  Lasso p{};
  p.features = features;
  p.components = components;
  p.dictionary = at(atoms);
  p.panels = at(panels);
  const LassoKernels& kernels = active<LassoKernels>();
  without_gil([&] {
    if (type == kFloat64)
      pack(features, components, at<const double>(dictionary), at<double>(atoms), at<double>(panels));
    else
      pack(features, components, at<const float>(dictionary), at<float>(atoms), at<float>(panels));
    each_part(p, components, threads,
              [&](int64_t row0, int64_t row1, void* room) { kernels.gram[type](p, row0, row1, at(gram), room); });
  });
}

void encode(int type, int threads, int algorithm, bool positive, int64_t rows, int64_t features, int64_t components,
            int64_t max_iter, double tolerance, double curvature, uintptr_t x, uintptr_t dictionary, uintptr_t panels,
            uintptr_t gram, uintptr_t alpha, int64_t alpha_stride, uintptr_t init, uintptr_t codes, uintptr_t gap) {
  const Lasso p{static_cast<LassoAlgorithm>(algorithm),
                positive,
                features,
                components,
                max_iter,
                tolerance,
                curvature,
                at(x),
                at(dictionary),
                at(panels),
                at(gram),
                at<const double>(alpha),
                alpha_stride,
                at(init),
                at(codes),
                at(gap)};
  const LassoKernels& kernels = active<LassoKernels>();
  without_gil([&] {
    each_part(p, rows, threads,
              [&](int64_t row0, int64_t row1, void* room) { kernels.encode[type](p, row0, row1, room); });
  });
}

}  // namespace

void bind_lasso(py::module_& m) {
  m.def("lasso_prepare", &prepare);
  m.def("lasso_encode", &encode);
}

}  // namespace lk
