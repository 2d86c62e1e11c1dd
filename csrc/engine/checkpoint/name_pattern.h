// Patterns over module names, as the ignore lists of quantisation configs write them. The patterns come from untrusted
// files, so regular expressions run as an automaton: time is name length x pattern length whatever the pattern says.
#pragma once

#include <bitset>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace sigmoe {

class NamePattern {
 public:
  static NamePattern exact(std::string name);
  static NamePattern substring(std::string part);
  static NamePattern glob(const std::string& text);  // * any run of characters, ? any one; the whole name
  // Must match from the start of the name, not to its end. Literals, classes, groups, alternatives, repetition and anchors;
  // throws unsupported for the rest (look-around, back references) and for patterns of unreasonable size.
  static NamePattern regex(const std::string& expression);

  bool matches(std::string_view name) const;

 private:
  enum class Kind : uint8_t { exact, substring, automaton };
  enum class Op : uint8_t { set, split, jump, begin, end, accept };
  struct Instruction {
    Op op;
    int32_t x = 0, y = 0;  // set: index of the set; split, jump: targets
  };
  friend class RegexCompiler;
  bool run(std::string_view name) const;

  Kind kind_ = Kind::exact;
  std::string text_;
  std::vector<Instruction> program_;
  std::vector<std::bitset<256>> sets_;
};

}  // namespace sigmoe
