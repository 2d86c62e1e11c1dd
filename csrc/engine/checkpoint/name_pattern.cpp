#include "engine/checkpoint/name_pattern.h"

#include <memory>

#include "backend/error.h"
#include "engine/checkpoint/json_text.h"

namespace sigmoe {
namespace {

constexpr size_t kMaxExpressionBytes = 512;
constexpr size_t kMaxInstructions = 2048;
constexpr int kMaxGroups = 32;    // nested
constexpr int kMaxRepeats = 256;  // {m,n}

using CharSet = std::bitset<256>;

struct Node {
  enum class Kind { empty, set, begin, end, sequence, alternatives, repeat } kind = Kind::empty;
  CharSet set;
  std::vector<Node> children;
  int least = 0, most = -1;  // repeat; -1: no limit
};

}  // namespace

// Recursive descent to a tree, then Thompson's construction. Both recurse only as deep as groups nest.
class RegexCompiler {
 public:
  explicit RegexCompiler(std::string_view text) : text_(text) {}

  void compile(NamePattern& out) {
    if (text_.size() > kMaxExpressionBytes) fail("is longer than " + std::to_string(kMaxExpressionBytes) + " bytes");
    const Node root = alternatives(0);
    if (at_ != text_.size()) fail("has an unmatched ')'");
    emit(root, out);
    push(out, {NamePattern::Op::accept});
  }

 private:
  using Op = NamePattern::Op;

  [[noreturn]] void fail(const std::string& why) const {
    throw EngineError(ErrorCode::unsupported, "the module pattern '" + shortened(text_, 80) + "' " + why,
                      "list the modules by name in the checkpoint's quantisation config");
  }

  bool more() const { return at_ < text_.size(); }
  bool take(char c) {
    if (!more() || text_[at_] != c) return false;
    ++at_;
    return true;
  }

  Node alternatives(int depth) {
    if (depth > kMaxGroups) fail("nests groups too deeply");
    Node node;
    node.kind = Node::Kind::alternatives;
    do node.children.push_back(sequence(depth));
    while (take('|'));
    return node.children.size() == 1 ? std::move(node.children[0]) : node;
  }

  Node sequence(int depth) {
    Node node;
    node.kind = Node::Kind::sequence;
    while (more() && text_[at_] != '|' && text_[at_] != ')') node.children.push_back(repeated(depth));
    return node;
  }

  Node repeated(int depth) {
    Node item = atom(depth);
    if (!more()) return item;
    Node node;
    node.kind = Node::Kind::repeat;
    if (take('*'))
      node.least = 0;
    else if (take('+'))
      node.least = 1;
    else if (take('?'))
      node.most = 1;
    else if (take('{'))
      counts(node);
    else
      return item;
    take('?');  // lazy or greedy: whether there is a match does not depend on it
    if (more() && (text_[at_] == '*' || text_[at_] == '+' || text_[at_] == '{')) fail("repeats a repetition");
    node.children.push_back(std::move(item));
    return node;
  }

  void counts(Node& node) {
    const auto count = [&] {
      int value = -1;
      while (more() && text_[at_] >= '0' && text_[at_] <= '9') {
        value = (value < 0 ? 0 : value) * 10 + (text_[at_++] - '0');
        if (value > kMaxRepeats) fail("repeats more than " + std::to_string(kMaxRepeats) + " times");
      }
      return value;
    };
    const int first = count();
    node.least = first < 0 ? 0 : first;
    node.most = take(',') ? count() : first;
    if (!take('}') || (node.most >= 0 && node.most < node.least)) fail("has a malformed repetition count");
  }

  Node atom(int depth) {
    Node node;
    node.kind = Node::Kind::set;
    const char c = text_[at_++];
    switch (c) {
      case '(': {
        if (take('?') && !take(':')) fail("uses a group that is not supported: only ( ) and (?: ) are");
        Node inner = alternatives(depth + 1);
        if (!take(')')) fail("has an unmatched '('");
        return inner;
      }
      case '^': node.kind = Node::Kind::begin; return node;
      case '$': node.kind = Node::Kind::end; return node;
      case '.':
        node.set.set();
        node.set.reset('\n');
        return node;
      case '[': node.set = bracket(); return node;
      case '\\': node.set = escape(); return node;
      case '*':
      case '+':
      case '?':
      case '{': fail("repeats nothing");
      default: node.set.set(static_cast<unsigned char>(c)); return node;
    }
  }

  static void add_range(CharSet& set, int first, int last) {
    for (int c = first; c <= last; ++c) set.set(static_cast<size_t>(c));
  }

  CharSet escape() {
    if (!more()) fail("ends in a backslash");
    const char c = text_[at_++];
    CharSet set;
    switch (c) {
      case 'd':
      case 'D': add_range(set, '0', '9'); break;
      case 's':
      case 'S':
        for (const char space : {' ', '\t', '\n', '\r', '\f', '\v'}) set.set(static_cast<size_t>(space));
        break;
      case 'w':
      case 'W':
        add_range(set, '0', '9'), add_range(set, 'a', 'z'), add_range(set, 'A', 'Z');
        set.set('_');
        break;
      default: {
        const bool letter_or_digit = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
        if (letter_or_digit) fail("uses the escape \\" + std::string(1, c));
        set.set(static_cast<unsigned char>(c));
        return set;
      }
    }
    return c >= 'A' && c <= 'Z' ? ~set : set;
  }

  CharSet bracket() {
    CharSet set;
    const bool negated = take('^');
    bool first = true;
    while (more() && (text_[at_] != ']' || first)) {
      first = false;
      const char c = text_[at_++];
      if (c == '\\') {
        set |= escape();
      } else if (at_ + 1 < text_.size() && text_[at_] == '-' && text_[at_ + 1] != ']') {
        const int low = static_cast<unsigned char>(c), high = static_cast<unsigned char>(text_[at_ + 1]);
        if (high < low || text_[at_ + 1] == '\\') fail("has a malformed range");
        add_range(set, low, high);
        at_ += 2;
      } else {
        set.set(static_cast<unsigned char>(c));
      }
    }
    if (!take(']')) fail("has an unmatched '['");
    return negated ? ~set : set;
  }

  int32_t push(NamePattern& out, NamePattern::Instruction instruction) const {
    if (out.program_.size() >= kMaxInstructions) fail("is too large when its repetitions are written out");
    out.program_.push_back(instruction);
    return static_cast<int32_t>(out.program_.size()) - 1;
  }

  void emit(const Node& node, NamePattern& out) {
    if (++emitted_ > 4 * kMaxInstructions) fail("is too large when its repetitions are written out");  // empty ones count too
    const auto here = [&] { return static_cast<int32_t>(out.program_.size()); };
    switch (node.kind) {
      case Node::Kind::empty: return;
      case Node::Kind::begin: push(out, {Op::begin}); return;
      case Node::Kind::end: push(out, {Op::end}); return;
      case Node::Kind::set:
        push(out, {Op::set, static_cast<int32_t>(out.sets_.size())});
        out.sets_.push_back(node.set);
        return;
      case Node::Kind::sequence:
        for (const Node& child : node.children) emit(child, out);
        return;
      case Node::Kind::alternatives: {
        std::vector<int32_t> jumps;
        for (size_t i = 0; i < node.children.size(); ++i) {
          const bool last = i + 1 == node.children.size();
          const int32_t split = last ? -1 : push(out, {Op::split, here() + 1});
          emit(node.children[i], out);
          if (last) break;
          jumps.push_back(push(out, {Op::jump}));
          out.program_[split].y = here();
        }
        for (const int32_t jump : jumps) out.program_[jump].x = here();
        return;
      }
      case Node::Kind::repeat: {
        for (int i = 0; i < node.least; ++i) emit(node.children[0], out);
        if (node.most < 0) {
          const int32_t split = push(out, {Op::split, here() + 1});
          emit(node.children[0], out);
          push(out, {Op::jump, split});
          out.program_[split].y = here();
          return;
        }
        std::vector<int32_t> splits;
        for (int i = node.least; i < node.most; ++i) {
          splits.push_back(push(out, {Op::split, here() + 1}));
          emit(node.children[0], out);
        }
        for (const int32_t split : splits) out.program_[split].y = here();
        return;
      }
    }
  }

  std::string_view text_;
  size_t at_ = 0, emitted_ = 0;
};

NamePattern NamePattern::exact(std::string name) {
  NamePattern pattern;
  pattern.text_ = std::move(name);
  return pattern;
}

NamePattern NamePattern::substring(std::string part) {
  NamePattern pattern;
  pattern.kind_ = Kind::substring;
  pattern.text_ = std::move(part);
  return pattern;
}

NamePattern NamePattern::regex(const std::string& expression) {
  NamePattern pattern;
  pattern.kind_ = Kind::automaton;
  RegexCompiler(expression).compile(pattern);
  return pattern;
}

NamePattern NamePattern::glob(const std::string& text) {
  std::string expression;
  for (const char c : text) {
    const bool plain = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
    if (c == '*')
      expression += ".*";
    else if (c == '?')
      expression += '.';
    else
      expression += plain ? std::string(1, c) : std::string{'\\', c};
  }
  return regex(expression + "$");
}

bool NamePattern::matches(std::string_view name) const {
  switch (kind_) {
    case Kind::exact: return name == text_;
    case Kind::substring: return name.find(text_) != std::string_view::npos;
    case Kind::automaton: return run(name);
  }
  return false;
}

// All states the expression can be in, advanced one character at a time. A state is added at most once per character,
// which is also what ends loops over empty matches.
bool NamePattern::run(std::string_view name) const {
  std::vector<int32_t> now, next, stack;
  now.reserve(program_.size()), next.reserve(program_.size()), stack.reserve(2 * program_.size());
  std::vector<size_t> seen(program_.size(), 0);  // position + 1 at which the state was last added
  bool accepted = false;
  const auto add = [&](std::vector<int32_t>& states, int32_t start, size_t position) {
    stack.push_back(start);
    while (!stack.empty()) {
      const int32_t state = stack.back();
      stack.pop_back();
      if (seen[state] == position + 1) continue;
      seen[state] = position + 1;
      const Instruction& instruction = program_[state];
      switch (instruction.op) {
        case Op::set: states.push_back(state); break;
        case Op::jump: stack.push_back(instruction.x); break;
        case Op::split: stack.push_back(instruction.x), stack.push_back(instruction.y); break;
        case Op::begin:
          if (position == 0) stack.push_back(state + 1);
          break;
        case Op::end:
          if (position == name.size()) stack.push_back(state + 1);
          break;
        case Op::accept: accepted = true; break;
      }
    }
  };
  add(now, 0, 0);
  for (size_t i = 0; i < name.size() && !accepted && !now.empty(); ++i) {
    next.clear();
    for (const int32_t state : now)
      if (sets_[program_[state].x].test(static_cast<unsigned char>(name[i]))) add(next, state + 1, i + 1);
    std::swap(now, next);
  }
  return accepted;
}

}  // namespace sigmoe
