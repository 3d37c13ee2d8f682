// Which build of the CPU's operations this machine runs.
#pragma once

#ifdef SPANBERT_X86
#include <cpuid.h>
#endif

#include "ops.h"

namespace spanbert {

struct CpuBuild {
  const char* name;
  const CpuOperations* operations;
};

#ifdef SPANBERT_X86
// The levels x86-64-v3 and x86-64-v4 feature by feature: GCC knows the levels' names from 12 on, and clang 14 does not
// know the names of the three features that are read from CPUID. What needs the operating system's help is asked for
// through the compiler's library, which asks that too.
inline bool has_v3() {
  unsigned eax, ebx, ecx, edx;
  const bool basic = __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C) && (ecx & bit_MOVBE);
  const bool lzcnt = __get_cpuid(0x80000001u, &eax, &ebx, &ecx, &edx) && (ecx & bit_LZCNT);
  return basic && lzcnt && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
}

inline bool has_v4() {
  return has_v3() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

inline CpuBuild choose_cpu() {
#ifdef SPANBERT_X86
  __builtin_cpu_init();
  if (has_v4()) return {"avx512", &avx512::kOperations};
  if (has_v3()) return {"avx2", &avx2::kOperations};
#endif
  return {"baseline", &baseline::kOperations};
}

}  // namespace spanbert
