// Runs the tests of a kernel against each of its mutants. A mutant that they do not notice is a test that is missing.
#define DOCTEST_CONFIG_IMPLEMENT
#include "mutants.h"

#include <chrono>
#include <cstdio>
#include <sstream>
#include <string>

#include "doctest/doctest.h"

namespace {

// What the first failure said: the message of a fault, or the check that did not hold.
std::string first_failure(const std::string& output) {
  const size_t begin = output.find("ERROR: ");
  if (begin == std::string::npos) return "no failure";
  return output.substr(begin + 7, output.find('\n', begin) - begin - 7);
}

}  // namespace

int main() {
  const auto start = std::chrono::steady_clock::now();
  size_t caught = 0;
  for (const Mutant& mutant : all_mutants()) {
    std::ostringstream output;
    doctest::Context context;
    context.setOption("test-case", mutant.tests);
    context.setOption("abort-after", 1);
    context.setOption("no-colors", true);
    context.setCout(&output);
    mutant.use(true);
    const bool noticed = context.run() != 0;
    mutant.use(false);
    caught += noticed;
    std::printf("%s %s, %s: %s\n  %s\n", noticed ? "caught  " : "SURVIVED", mutant.kernel, mutant.file, mutant.why,
                first_failure(output.str()).c_str());
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  std::printf("mutants: %zu of %zu caught in %.1f s\n", caught, all_mutants().size(), seconds);
  return caught == all_mutants().size() && caught > 0 ? 0 : 1;
}
