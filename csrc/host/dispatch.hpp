// Which build of the kernels is in use: there is one for each instruction set, and the processor says which of them
// run.
#pragma once

namespace lk {

struct Build {
  const char* name;
  int lanes;  // float32 values in a register
};

// The builds that this processor can run, narrowest first.
constexpr Build kBuilds[] = {{"baseline", 4}, {"avx2", 8}, {"avx512", 16}};
int runnable_builds();

// The place of the one in use: the widest, until select_build names another.
int active_build();
bool select_build(const char* name);

// An op's kernels of the build in use. Every op has a table of them, `Kernels`, with a static member for each build.
template <class Kernels>
const Kernels& active() {
#ifdef LK_X86
  static constexpr const Kernels* builds[] = {&Kernels::baseline, &Kernels::avx2, &Kernels::avx512};
#else
  static constexpr const Kernels* builds[] = {&Kernels::baseline};
#endif
  return *builds[active_build()];
}

}  // namespace lk
