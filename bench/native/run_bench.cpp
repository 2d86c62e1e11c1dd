// `sigmoe bench` without Node, for machines that have no Node: run_benchmark over the same libraries.
//
//   sigmoe_bench decode --shape ling-flash-2.0:20 --dtype fp8 --batch 1,8,32,128 --context 1024 --device cuda --out FILE
//
// Flags are the options of csrc/engine/bench/options.h. Prints a table; --out writes the JSON.
#include <cstdio>
#include <fstream>
#include <sstream>

#include "engine/engine.h"
#include "nlohmann/json.hpp"

using namespace sigmoe;
using Json = nlohmann::ordered_json;

namespace {

// "8" is a number, "1,8" a list of them, anything else a text.
Json value_of(const std::string& text) {
  if (text == "true" || text == "false") return text == "true";
  Json list = Json::array();
  std::istringstream items(text);
  for (std::string item; std::getline(items, item, ',');) {
    if (item.empty() || item.size() > 9 || item.find_first_not_of("0123456789") != std::string::npos) return text;
    list.push_back(std::stoi(item));
  }
  return list.size() == 1 ? list[0] : list;
}

double number_of(const Json& row, const char* name) { return row.value(name, 0.0); }

void print(const Json& result) {
  const Json& machine = result["machine"];
  std::printf("%s on %s, %s; ceilings:", result["shape"].get<std::string>().c_str(), machine["name"].get<std::string>().c_str(),
              machine["kernels"].get<std::string>().c_str());
  for (const char* name : {"readGbps", "copyGbps", "matrixGflops", "matrixFp8Gflops", "linkGbps", "meetingMicroseconds"})
    if (machine.contains(name)) std::printf(" %s %.4g", name, number_of(machine, name));
  std::printf("\n");
  for (const Json& row : result["rows"]) {
    std::string what = row["part"].get<std::string>();
    for (const char* name : {"ranks", "experts", "batch", "prompt", "rows", "rowsPerExpert", "context"})
      if (row.contains(name)) what += std::string(" ") + name + " " + row[name].dump();
    std::printf("%-56s %10.4f ms", what.c_str(), number_of(row, "milliseconds"));
    if (row.contains("fraction"))
      std::printf(" %6.1f%% %7.1f GB/s %8.4g TFLOPS", 100 * number_of(row, "fraction"), number_of(row, "gbps"),
                  number_of(row, "gflops") / 1e3);
    if (row.contains("tokensPerSecond")) std::printf(" %9.1f tok/s", number_of(row, "tokensPerSecond"));
    if (row.contains("distinctExperts")) std::printf(" %.1f experts", number_of(row, "distinctExperts"));
    if (row.contains("timesDefault")) std::printf(" %.3f x default", number_of(row, "timesDefault"));
    if (row.contains("slowPath")) std::printf(" SLOW PATH");
    std::printf("\n");
    if (row.contains("kernels"))
      for (const Json& kernel : row["kernels"])
        std::printf("    %9.2f us  %6.2f x %s\n", 1e3 * number_of(kernel, "milliseconds"), number_of(kernel, "launches"),
                    kernel["name"].get<std::string>().c_str());
  }
}

}  // namespace

int main(int argc, char** argv) {
  try {
    Json options;
    std::string out;
    int first = 1;
    if (argc > 1 && argv[1][0] != '-') options["mode"] = argv[first++];
    for (int i = first; i < argc; i += 2) {
      const std::string name = argv[i];
      if (name.rfind("--", 0) != 0 || i + 1 == argc)
        throw EngineError(ErrorCode::invalid_argument, name + " asked for: flags are --name value");
      if (name == "--out")
        out = argv[i + 1];
      else
        options[name.substr(2)] = value_of(argv[i + 1]);
    }
    const std::string text =
        run_benchmark(options.dump(), [](const std::string& line) { std::fprintf(stderr, "%s\n", line.c_str()); });
    const Json result = Json::parse(text);
    if (!out.empty()) {
      std::ofstream file(out);
      file << result.dump(1) << '\n';
      if (!file.flush()) throw EngineError(ErrorCode::io, out + ": cannot be written");
    }
    if (result["rows"].empty() || result["rows"][0].contains("part"))
      print(result);
    else
      std::printf("%s\n", result.dump(1).c_str());  // what no table is made for: drafts with replayed acceptance
    return 0;
  } catch (const EngineError& error) {
    std::fprintf(stderr, "%s: %s\n%s\n", error_code_name(error.code()), error.what(), error.hint().c_str());
    return 1;
  }
}
