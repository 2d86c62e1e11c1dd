// A defect planted in a kernel: what mutations.cmake makes of an entry of mutations.txt.
#pragma once

#include <vector>

struct Mutant {
  const char* kernel;
  const char* file;
  const char* tests;  // the test cases that must notice, as doctest filters them
  const char* why;
  void (*use)();  // puts it in the place of its kernel
};

const std::vector<Mutant>& all_mutants();
