#include <cstring>
#include <utility>
#include <vector>

#include "host/bind.hpp"
#include "vector_quantize/problem.hpp"

namespace lk {

template <>
struct FieldsOf<QuantizeProblem> {
  using P = QuantizeProblem;
  static constexpr auto list = std::make_tuple(
      Field{"dtype", &P::dtype}, Field{"groups", &P::groups}, Field{"rows", &P::rows}, Field{"codes", &P::codes},
      Field{"cols", &P::cols}, Field{"z", &P::z}, Field{"codebook", &P::codebook}, Field{"assigned", &P::assigned});
};

namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Calls f(first, end) for pieces of [0, n) of at least `least` elements, `each` in one.
template <class F>
void each_piece(int64_t n, int64_t each, int64_t least, int threads, F f) {
  const int64_t step = ceil_div(least, std::max<int64_t>(each, 1));
  parallel_for(ceil_div(n, step), worthwhile_threads(threads, n * each),
               [&](int64_t i) { f(i * step, std::min((i + 1) * step, n)); });
}

// The rows of every code, in ascending order, for they are added up in this order: a counting sort.
class SortedRows {
 public:
  SortedRows(const QuantizeProblem& p, const int64_t* codes)
      : p_(p), ends_(static_cast<size_t>(p.groups * p.codes)), rows_(static_cast<size_t>(p.groups * p.rows)) {
    const auto each = [&](auto f) {
      for (int64_t n = 0; n < p.groups * p.rows; ++n)
        if (codes[n] >= 0 && codes[n] < p.codes) f(n, ends_[static_cast<size_t>(n / p.rows * p.codes + codes[n])]);
    };
    each([](int64_t, int64_t& count) { ++count; });
    int64_t sum = 0;
    for (int64_t& end : ends_) sum += std::exchange(end, sum);
    each([&](int64_t n, int64_t& end) { rows_[static_cast<size_t>(end++)] = n % p.rows; });
  }

  // Rows of code i, counted over all groups.
  RowsOfCode of_code(int64_t i) const {
    const int64_t begin = i == 0 ? 0 : ends_[static_cast<size_t>(i - 1)];
    return {i / p_.codes, i % p_.codes, rows_.data() + begin, rows_.data() + ends_[static_cast<size_t>(i)]};
  }

  // Calls f for the rows of every code.
  template <class F>
  void each_code(int threads, F f) const {
    const int64_t codes = p_.groups * p_.codes, rows = p_.groups * p_.rows;
    each_piece(codes, (rows / codes + 1) * p_.cols, kTaskElements, threads, [&](int64_t first, int64_t end) {
      for (int64_t i = first; i < end; ++i) f(of_code(i));
    });
  }

 private:
  const QuantizeProblem& p_;
  std::vector<int64_t> ends_, rows_;
};

void assign(const QuantizeProblem& p, int threads, int64_t* codes, int64_t* counts, void* sums) {
  const QuantizeKernels& kernels = active<QuantizeKernels>();
  const int64_t bytes = compute_bytes_of(p.dtype);
  without_gil([&] {
    std::vector<char> panels(static_cast<size_t>(kernels.panel_elements[p.dtype](p) * bytes + 64));
    char* const packed = panels.data() + (64 - reinterpret_cast<uintptr_t>(panels.data()) % 64);
    const int64_t tiles = ceil_div(p.rows, kQuantizeRows),
                  work = kQuantizeRows * p.codes * std::max<int64_t>(p.cols, 1);
    for (int64_t group = 0; group < p.groups && p.rows > 0; ++group) {
      kernels.pack[p.dtype](p, group, packed);
      each_piece(tiles, work, 64 * kTaskElements, threads, [&](int64_t first, int64_t end) {
        const bool is_half = bytes_of(p.dtype) != bytes;
        std::vector<char> wide(is_half ? static_cast<size_t>(kQuantizeRows * p.cols * bytes) : 0);
        for (int64_t tile = first; tile < end; ++tile) {
          const int64_t row0 = tile * kQuantizeRows, row1 = std::min(row0 + kQuantizeRows, p.rows);
          kernels.assign[p.dtype](p, group, row0, row1, packed, wide.data(), codes + group * p.rows + row0);
        }
      });
    }
    const SortedRows sorted(p, codes);
    sorted.each_code(threads, [&](const RowsOfCode& rows) {
      counts[rows.group * p.codes + rows.code] = rows.end - rows.begin;
      kernels.sum[p.dtype](p, rows, sums);
    });
  });
}

void forward(const QuantizeProblem& p, int threads, void* quantized, void* commitment, void* codebook_loss) {
  const auto kernel = active<QuantizeKernels>().forward[p.dtype];
  const QuantizeOutputs out{quantized, commitment, codebook_loss};
  without_gil([&] {
    each_piece(p.groups * p.rows, p.cols, kTaskElements, threads,
               [&](int64_t first, int64_t end) { kernel(p, out, first, end); });
  });
}

void backward(const QuantizeProblem& p, int threads, const void* quantized, const void* commitment,
              const void* codebook_loss, void* z_gradient, void* codebook_gradient) {
  const QuantizeKernels& kernels = active<QuantizeKernels>();
  const QuantizeUpstream upstream{quantized, commitment, codebook_loss};
  without_gil([&] {
    if (z_gradient != nullptr)
      each_piece(p.groups * p.rows, p.cols, kTaskElements, threads, [&](int64_t first, int64_t end) {
        kernels.row_gradients[p.dtype](p, upstream, first, end, z_gradient);
      });
    if (codebook_gradient != nullptr && codebook_loss == nullptr)
      std::memset(codebook_gradient, 0, static_cast<size_t>(p.groups * p.codes * p.cols * bytes_of(p.dtype)));
    else if (codebook_gradient != nullptr)
      SortedRows(p, p.assigned).each_code(threads, [&](const RowsOfCode& rows) {
        kernels.code_gradient[p.dtype](p, rows, upstream, codebook_gradient);
      });
  });
}

}  // namespace

void bind_vector_quantize(pybind11::module_& m) {
  define_struct<QuantizeProblem>(m, "QuantizeProblem");
  define<&assign>(m, "quantize_assign", {"threads", "codes", "counts", "sums"});
  define<&forward>(m, "quantize_forward", {"threads", "quantized", "commitment", "codebook_loss"});
  define<&backward>(m, "quantize_backward",
                    {"threads", "quantized_gradient", "commitment_gradient", "codebook_loss_gradient", "z_gradient",
                     "codebook_gradient"});
}

}  // namespace lk
