#pragma once

#include <cstdint>

namespace fastlrp::cpu {

// How a number of the mask counts: not at all, true attends, or added to the score.
enum class Mask { none, flags, bias };

// Where a product's keys are, of which query row r attends to the first `reach + r` alone, r counted as the product's
// other rows are. What the rest would bring is zero, or is not read.
enum class Keys { all, in_columns, in_depth, in_rows };

// A product C = A B or C += A B of small matrices. B and what its kernel pads are packed: panels of 2 x width columns
// one after the other, the last of width columns where no more are left, each with all its rows.
template <class T>
struct Product {
  int64_t rows, depth, columns;
  const T* a;
  int64_t a_stride;
  bool along;  // element (row, i) is a[row * a_stride + i], otherwise a[i * a_stride + row]
  const T* b;
  int64_t b_rows, b_first;  // rows that were packed, and the first of the `depth` rows that are read
  T* c;
  int64_t c_stride;
  bool fresh;       // C begins at zero
  const T* factor;  // null, or C = factor (A B - delta) with factors in rows like C's, columns padded to width
  const T* delta;
  Keys keys;
  int64_t reach;
};

// A tile of probabilities from one of products u = scale q k^T, both (rows, keys) with the same stride.
template <class T>
struct Scores {
  int64_t rows, keys, padded;
  T* scores;  // u, then P = exp(s - log_sum); 0 in the columns from keys to padded
  T* factor;  // null, or P times the shares of soft cap and stabilizer
  int64_t stride;
  const T* log_sum;
  bool causal;
  int64_t first;  // how many keys the first row attends to, each next row one more
  Mask kind;
  const void* mask;
  int64_t mask_row, mask_key;
  T cap, epsilon;
};

template <class T>
struct AttentionKernel {
  int64_t width;  // of a register
  void (*product)(const Product<T>& p);
  bool (*probabilities)(const Scores<T>& p);  // whether one is not zero
  // delta[r] = sum over e of g[r][e] o[r][e] (no o: none), and the rows from the first to behind the last of g that has
  // a number other than zero.
  void (*flow)(int64_t rows, int64_t size, const T* g, int64_t g_stride, const T* o, int64_t o_stride, T* delta,
               int64_t* begin, int64_t* end);
  void (*pack)(int64_t rows, int64_t columns, const T* from, int64_t stride, T scale, T* to);
  void (*pack_transposed)(int64_t columns, int64_t rows, const T* from, int64_t stride, T scale, T* to);
};

// For the instruction set in use.
template <class T>
AttentionKernel<T> attention_kernel();

}  // namespace fastlrp::cpu
