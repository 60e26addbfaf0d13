// The build of the kernels that is in use. There is one for each instruction set, and the processor decides which of
// them can run. On x86 these are AVX2 with FMA and AVX-512; the generic build is for other processors, and on x86 for
// tests.
#pragma once

namespace lk {

struct Build {
  const char* name;
  int lanes;  // float32 values in a register
};

// The builds that this processor can run, narrowest first; none on x86 without AVX2 and FMA.
constexpr Build kBuilds[] = {
#ifdef LK_GENERIC
    {"generic", 4},
#endif
#ifdef LK_X86
    {"avx2", 8},
    {"avx512", 16},
#endif
};
int runnable_builds();

// The index of the build in use: the widest, until select_build names another. Throws where there is none.
int active_build();
bool select_build(const char* name);

// An op's kernels of the build in use. Every op has a table of them, `Kernels`, with a static member for each build.
template <class Kernels>
const Kernels& active() {
  static constexpr const Kernels* builds[] = {
#ifdef LK_GENERIC
      &Kernels::generic,
#endif
#ifdef LK_X86
      &Kernels::avx2,
      &Kernels::avx512,
#endif
  };
  return *builds[active_build()];
}

}  // namespace lk
