// Runs the tests of a kernel against each of its mutants. A mutant that they do not notice is a test that is missing. Each runs
// in a process of its own: a defect may end it, or keep it from ending.
#define DOCTEST_CONFIG_IMPLEMENT
#include "mutants.h"

#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <sstream>
#include <string>

#include "doctest/doctest.h"

namespace {

constexpr unsigned kLimitSeconds = 120;  // for tests that take seconds

struct Verdict {
  bool noticed = false;
  std::string how;
};

// What the first failure said: the message of a fault, or the check that did not hold.
std::string first_failure(const std::string& output) {
  const size_t begin = output.find("ERROR: ");
  if (begin == std::string::npos) return "no test failed";
  return output.substr(begin + 7, output.find('\n', begin) - begin - 7);
}

[[noreturn]] void run_tests(const Mutant& mutant, int report) {
  alarm(kLimitSeconds);
  std::ostringstream output;
  doctest::Context context;
  context.setOption("test-case", mutant.tests);
  context.setOption("abort-after", 1);
  context.setOption("no-colors", true);
  context.setCout(&output);
  mutant.use();
  const int status = context.run();
  const std::string how = first_failure(output.str());
  const bool told = write(report, how.data(), how.size()) == static_cast<ssize_t>(how.size());
  _exit(status == 0 || !told ? 0 : 1);
}

Verdict try_mutant(const Mutant& mutant) {
  int ends[2];
  if (pipe(ends) != 0) return {false, "no pipe"};
  std::fflush(stdout);
  const pid_t child = fork();
  if (child < 0) return {false, "no process"};
  if (child == 0) run_tests(mutant, ends[1]);
  close(ends[1]);
  Verdict verdict;
  char buffer[4096];
  for (ssize_t n; (n = read(ends[0], buffer, sizeof(buffer))) > 0;) verdict.how.append(buffer, static_cast<size_t>(n));
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  verdict.noticed = !WIFEXITED(status) || WEXITSTATUS(status) != 0;
  if (WIFSIGNALED(status))
    verdict.how = WTERMSIG(status) == SIGALRM ? "did not end" : "ended by signal " + std::to_string(WTERMSIG(status));
  return verdict;
}

}  // namespace

int main() {
  const auto start = std::chrono::steady_clock::now();
  size_t caught = 0;
  for (const Mutant& mutant : all_mutants()) {
    const Verdict verdict = try_mutant(mutant);
    caught += verdict.noticed;
    std::printf("%s %s, %s: %s\n  %s\n", verdict.noticed ? "caught  " : "SURVIVED", mutant.kernel, mutant.file, mutant.why,
                verdict.how.c_str());
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  std::printf("mutants: %zu of %zu caught in %.1f s\n", caught, all_mutants().size(), seconds);
  return caught == all_mutants().size() && caught > 0 ? 0 : 1;
}
