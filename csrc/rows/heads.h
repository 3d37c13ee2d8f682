// Rows of D numbers between a stream [T, heads, D] and n padded sequences [n, heads, L, D] on the CPU, as attention's
// products need them: bytes, whatever the numbers are. torch's copy between such views takes five times as long.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace spanbert {

struct HeadRows {
  char* stream;
  int64_t token_bytes, head_bytes;  // from a token's row to the next one's, and to its next head's
  const int64_t *starts, *counts;   // [n] where the sequences lie in the stream
  char* padded;
  int64_t sequences, heads, length, row_bytes;

  // To the padded sequences, with zeros behind each, or back.
  void move(bool pad) const {
    const int64_t planes = sequences * heads;
#pragma omp parallel for schedule(static) if (planes * length * row_bytes > 1 << 17)
    for (int64_t plane = 0; plane < planes; ++plane) {
      // A call for 64 bytes would cost as much as moving them: these sizes are known to the compiler.
      switch (row_bytes) {
        case 64: move_plane(pad, plane, std::integral_constant<size_t, 64>()); break;
        case 128: move_plane(pad, plane, std::integral_constant<size_t, 128>()); break;
        case 256: move_plane(pad, plane, std::integral_constant<size_t, 256>()); break;
        default: move_plane(pad, plane, size_t(row_bytes));
      }
    }
  }

  // One head of one sequence.
  template <class Size>
  void move_plane(bool pad, int64_t plane, Size size) const {
    const int64_t count = counts[plane / heads];
    char* rows = stream + starts[plane / heads] * token_bytes + plane % heads * head_bytes;
    char* own = padded + plane * length * row_bytes;
    if (pad) {
      for (int64_t i = 0; i < count; ++i) memcpy(own + i * size, rows + i * token_bytes, size);
      memset(own + count * row_bytes, 0, size_t((length - count) * row_bytes));
    } else {
      for (int64_t i = 0; i < count; ++i) memcpy(rows + i * token_bytes, own + i * size, size);
    }
  }
};

}  // namespace spanbert
