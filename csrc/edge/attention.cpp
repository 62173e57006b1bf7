#include "attention.h"

#include "../cpu/attention.h"
#include "attention_arguments.h"

namespace fastlrp::edge {
namespace {

// (B, K, H, S, …), or without targets (B, H, S, …).
cpu::Strides strides_of(const Tensor& t) {
  return t.dim() == 5 ? cpu::Strides{t.stride(0), t.stride(1), t.stride(2), t.stride(3)}
                      : cpu::Strides{t.stride(0), 0, t.stride(1), t.stride(2)};
}

template <class T>
cpu::Rows<const T> read(const Tensor& t) {
  return t.defined() ? cpu::Rows<const T>{t.const_data_ptr<T>(), strides_of(t)} : cpu::Rows<const T>{};
}

template <class T>
cpu::Rows<T> write(const Tensor& t) {
  return t.defined() ? cpu::Rows<T>{t.mutable_data_ptr<T>(), strides_of(t)} : cpu::Rows<T>{};
}

struct Numbers {
  double scale, cap, share_query, share_key, share_value, epsilon;
};

template <class T>
void launch(const AttentionArguments& a, bool causal, const Numbers& n, const Tensor& c_query, const Tensor& c_key,
            const Tensor& c_value) {
  cpu::Attention<T> p{};
  p.batch = a.batch, p.targets = a.targets, p.heads = a.heads, p.key_heads = a.key_heads;
  p.rows = a.rows, p.keys = a.keys, p.size = a.size, p.value_size = a.value_size;
  p.relevance = read<T>(a.relevance), p.query = read<T>(a.query), p.key = read<T>(a.key);
  p.value = read<T>(a.value), p.output = read<T>(a.output);
  p.log_sum = a.log_sum.const_data_ptr<T>();
  p.kind = cpu::Mask::none;
  if (a.mask.has_value()) {
    p.kind = a.mask->scalar_type() == kBool ? cpu::Mask::flags : cpu::Mask::bias;
    p.mask = a.mask->const_data_ptr();
    p.mask_strides = strides_of(*a.mask);
    p.mask_key = a.mask->stride(3);
  }
  p.causal = causal;
  p.scale = static_cast<T>(n.scale), p.cap = static_cast<T>(n.cap), p.epsilon = static_cast<T>(n.epsilon);
  p.share_query = static_cast<T>(n.share_query), p.share_key = static_cast<T>(n.share_key);
  p.share_value = static_cast<T>(n.share_value);
  p.c_query = write<T>(c_query), p.c_key = write<T>(c_key), p.c_value = write<T>(c_value);
  cpu::attention_relevance<T>(p);
}

// Zeros where there is nothing to sum up.
void run(const AttentionArguments& a, bool causal, const Numbers& n, const Tensor& c_query, const Tensor& c_key,
         const Tensor& c_value) {
  if (a.relevance.numel() == 0 || a.keys == 0 || a.size == 0) {
    for (const Tensor& made : {c_query, c_key, c_value}) {
      if (made.defined()) {
        made.zero_();
      }
    }
    return;
  }
  a.relevance.scalar_type() == kFloat ? launch<float>(a, causal, n, c_query, c_key, c_value)
                                      : launch<double>(a, causal, n, c_query, c_key, c_value);
}

}  // namespace

namespace {

AttentionArguments all_arguments(const char* op, const Tensor& relevance, const Tensor& query, const Tensor& key,
                                 const Tensor& value, const Tensor& output, const Tensor& log_sum,
                                 const OptionalTensor& mask, double cap, double epsilon) {
  AttentionArguments a({kCpu, op}, relevance, query, key, log_sum, mask);
  a.take(value, output);
  a.number("cap", cap);
  a.number("epsilon", epsilon);
  return a;
}

}  // namespace

AttentionTensors attention_relevance(const Tensor& relevance, const Tensor& query, const Tensor& key,
                                     const Tensor& value, const Tensor& output, const Tensor& log_sum,
                                     const OptionalTensor& mask, bool causal, double scale, double cap,
                                     double share_query, double share_key, double share_value, double epsilon) {
  const AttentionArguments a =
      all_arguments("attention_relevance", relevance, query, key, value, output, log_sum, mask, cap, epsilon);
  const Tensor c_query = a.room(a.query, a.size), c_key = a.room(a.key, a.size);
  const Tensor c_value = a.room(a.value, a.value_size);
  run(a, causal, {scale, cap, share_query, share_key, share_value, epsilon}, c_query, c_key, c_value);
  return {c_query, c_key, c_value};
}

void attention_relevance_into(const Tensor& c_query, const Tensor& c_key, const Tensor& c_value,
                              const Tensor& relevance, const Tensor& query, const Tensor& key, const Tensor& value,
                              const Tensor& output, const Tensor& log_sum, const OptionalTensor& mask, bool causal,
                              double scale, double cap, double share_query, double share_key, double share_value,
                              double epsilon) {
  const AttentionArguments a =
      all_arguments("attention_relevance_into", relevance, query, key, value, output, log_sum, mask, cap, epsilon);
  a.given("c_query", c_query, a.heads, a.rows, a.size);
  a.given("c_key", c_key, a.key_heads, a.keys, a.size);
  a.given("c_value", c_value, a.key_heads, a.keys, a.value_size);
  run(a, causal, {scale, cap, share_query, share_key, share_value, epsilon}, c_query, c_key, c_value);
}

Tensor attention_value_relevance(const Tensor& relevance, const Tensor& query, const Tensor& key, const Tensor& log_sum,
                                 const OptionalTensor& mask, bool causal, double scale, double cap) {
  AttentionArguments a({kCpu, "attention_value_relevance"}, relevance, query, key, log_sum, mask);
  a.number("cap", cap);
  const Tensor c_value = a.room(a.key, a.value_size);
  run(a, causal, {scale, cap, 0, 0, 1, 0}, {}, {}, c_value);
  return c_value;
}

}  // namespace fastlrp::edge
