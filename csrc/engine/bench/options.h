// What `sigmoe bench` is asked to measure: JSON of the command line, checked.
#pragma once

#include <string>
#include <vector>

#include "engine/engine.h"

namespace sigmoe::bench {

struct Options {
  std::string mode = "model";  // model | decode | prefill | kernels
  std::string model, shape;    // one of them
  std::string dtype = "fp8";   // of a shape's weights: fp8 | bf16 | int4
  std::string head = "bf16";   // of a shape's lm_head: fp8 | bf16
  std::vector<int> batches;    // decode, kernels: sequences of one step
  std::vector<int> tokens;     // prefill: lengths of prompts
  std::vector<int> rows;       // kernels: rows per expert
  std::vector<int> contexts;   // tokens in the cache, the step's own included
  int prefill = 512;           // model: tokens of the prompt
  int chunk = 0;               // prompt tokens of one step; 0: what suits the device
  int repeats = 15;
  double seconds = 2;  // of one row: slow ones are repeated less
  bool load = false;   // model: measure loading as well
  EngineOptions engine;
};

Options parse_options(const std::string& json);

}  // namespace sigmoe::bench
