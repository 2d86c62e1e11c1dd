// The measurements that `sigmoe bench` can make; each appends rows to the meter.
#pragma once

#include "engine/bench/meter.h"

namespace sigmoe::bench {

// Whole steps and their ops for each batch size and context.
void measure_decode(BenchModel& model, const Options& options, Meter& meter);
// Whole steps only: what `deterministic` is compared with.
void measure_decode_steps(BenchModel& model, const Options& options, Meter& meter);
// Prompts from an empty cache, and their parts in the last chunk.
void measure_prefill(BenchModel& model, const Options& options, Meter& meter);
// Every op at the model's shapes, among them experts by rows per expert and attention by context.
void measure_kernels(BenchModel& model, const Options& options, Meter& meter);
// One prompt, one decoded token, and the latter's attention, experts and head.
void measure_model(BenchModel& model, const Options& options, Meter& meter);
// Loading a folder beside reading its bytes.
void measure_load(const Options& options, Meter& meter, const std::atomic<bool>* cancelled);

Costs costs_of(const BenchModel& model, const Options& options);

}  // namespace sigmoe::bench
