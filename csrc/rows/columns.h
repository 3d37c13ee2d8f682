// Which columns of a row a thread of a group works on, how it reads and writes them, and where it keeps values of them.
// Row functions loop over a thread's slots; a slot is kPack neighbouring columns. Two ways to share a row:
//   Strided  one column a slot, every size()-th column from rank on, values in memory. On the CPU the group is one
//   thread,
//            so this is the whole row and the loops over slots vectorise; on a GPU it takes rows of any width and
//            place.
//   Packed   16-byte accesses and values in registers, for GPU rows that allow it (packs_fit).
#pragma once

#include "common/vectors.h"

// Loops over slots, and over each column of a slot or pack: vectorised on the CPU; on a GPU unrolled as far as their
// ends are known, since registers have no addresses.
#ifdef __CUDACC__
#define SPANBERT_SLOTS _Pragma("unroll (Columns::kUnroll)")
#define SPANBERT_SLOTS_SUM(...) SPANBERT_SLOTS
#define SPANBERT_EACH _Pragma("unroll")
#else
#define SPANBERT_EACH
#define SPANBERT_SLOTS SPANBERT_SIMD
#define SPANBERT_SLOTS_SUM(...) SPANBERT_SIMD_SUM(__VA_ARGS__)
#endif

namespace spanbert {
namespace SPANBERT_VARIANT {

template <class W, int kPack>
struct Pack {
  W at[kPack];
};

template <int kPack, class T>
SPANBERT_HD Pack<working_t<T>, kPack> load_pack(const T* from) {
  Pack<working_t<T>, kPack> pack;
  if constexpr (kPack == 1) {
    pack.at[0] = load(*from);
  } else {
    constexpr int kWidth = kVectorWidth<T>;
    static_assert(kPack % kWidth == 0, "a pack is whole accesses");
    SPANBERT_EACH
    for (int part = 0; part < kPack; part += kWidth) {
      const Vector bits = read_vector(from + part);
      T scalars[kWidth];
      memcpy(scalars, &bits, kVectorBytes);
      SPANBERT_EACH
      for (int j = 0; j < kWidth; ++j) pack.at[part + j] = load(scalars[j]);
    }
  }
  return pack;
}

template <class T, int kPack>
SPANBERT_HD void store_pack(T* to, const Pack<working_t<T>, kPack>& pack) {
  if constexpr (kPack == 1) {
    *to = store<T>(pack.at[0]);
  } else {
    constexpr int kWidth = kVectorWidth<T>;
    static_assert(kPack % kWidth == 0, "a pack is whole accesses");
    SPANBERT_EACH
    for (int part = 0; part < kPack; part += kWidth) {
      T scalars[kWidth];
      SPANBERT_EACH
      for (int j = 0; j < kWidth; ++j) scalars[j] = store<T>(pack.at[part + j]);
      Vector bits;
      memcpy(&bits, scalars, kVectorBytes);
      write_vector(to + part, bits);
    }
  }
}

template <class GroupType>
struct Strided {
  using Group = GroupType;
  static constexpr int kPack = 1, kUnroll = 1;
  Group g;
  int64_t size;

  SPANBERT_HD int64_t slots() const { return (size - g.rank() + g.size() - 1) / g.size(); }
  SPANBERT_HD int64_t column(int64_t slot) const { return g.rank() + slot * g.size(); }
  SPANBERT_HD bool owns(int64_t) const { return true; }
  // Index of a column's value in an array of `Values`.
  SPANBERT_HD int64_t place(int64_t slot, int) const { return column(slot); }

  // kArrays values of every own column, in memory of kArrays * size values that the group shares.
  template <class W, int kArrays>
  struct Values {
    W* memory;
    int64_t size;
    SPANBERT_HD Values(const Strided& c, W* scratch) : memory(scratch), size(c.size) {}
    SPANBERT_HD W* array(int a) { return memory + a * size; }
  };
};

// Slot i of a thread is pack rank + i * group size; slots beyond the row belong to nobody.
template <class GroupType, int kColumnsPerPack, int kSlots>
struct Packed {
  using Group = GroupType;
  static constexpr int kPack = kColumnsPerPack, kUnroll = kSlots;
  static constexpr int64_t kColumns = int64_t(kPack) * kSlots * Group::kSize;  // the widest row
  Group g;
  int64_t size;

  SPANBERT_HD static constexpr int slots() { return kSlots; }
  SPANBERT_HD int64_t column(int slot) const { return int64_t(g.rank() + slot * Group::kSize) * kPack; }
  SPANBERT_HD bool owns(int slot) const { return column(slot) < size; }
  SPANBERT_HD static constexpr int place(int slot, int j) { return slot * kPack + j; }

  template <class W, int kArrays>
  struct Values {
    W registers[kArrays][kSlots * kPack];
    SPANBERT_HD Values(const Packed&, const W*) {}
    SPANBERT_HD W* array(int a) { return registers[a]; }
  };
};

}  // namespace SPANBERT_VARIANT
}  // namespace spanbert
