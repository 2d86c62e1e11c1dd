#include "backend/node_comm.h"

#include <cstring>

namespace sigmoe {
namespace {

using Parts = std::vector<std::string>;

void expect_size(const std::string& bytes, size_t n) {
  if (bytes.size() != n)
    throw EngineError(ErrorCode::device,
                      "ranks met with " + std::to_string(bytes.size()) + " bytes where " + std::to_string(n) + " were due",
                      "start all nodes with the same version, model and flags");
}

std::string_view bytes_of(const float* data, size_t n) { return {reinterpret_cast<const char*>(data), n * sizeof(float)}; }

// Strings in one, each behind its length.
std::string pack(const Parts& parts) {
  std::string out;
  for (const std::string& part : parts) {
    const uint64_t n = part.size();
    out.append(reinterpret_cast<const char*>(&n), sizeof n).append(part);
  }
  return out;
}

Parts unpack(std::string_view bytes, size_t n_parts) {
  Parts parts;
  while (parts.size() < n_parts) {
    uint64_t n = 0;
    if (bytes.size() >= sizeof n) std::memcpy(&n, bytes.data(), sizeof n);
    if (bytes.size() < sizeof n || n > bytes.size() - sizeof n) expect_size({}, 1);
    parts.emplace_back(bytes.substr(sizeof n, n));
    bytes.remove_prefix(sizeof n + n);
  }
  return parts;
}

class RankComm : public NodeComm {
 public:
  RankComm(std::shared_ptr<Node> node, std::shared_ptr<Comm> local) : node_(std::move(node)), local_(std::move(local)) {}

  int rank() const override { return node_->index() * local_->world() + local_->rank(); }
  int world() const override { return node_->count() * local_->world(); }

  void all_reduce_sum(float* data, int64_t n) override {
    const auto width = static_cast<size_t>(n);
    const auto add_up = [width, n_local = local_->world()](const Parts& nodes) {
      std::vector<float> sum(width), part(width);
      for (const std::string& node : nodes) {
        expect_size(node, n_local * width * sizeof(float));
        for (int r = 0; r < n_local; ++r) {  // rank order, as in a world of threads
          std::memcpy(part.data(), node.data() + r * width * sizeof(float), width * sizeof(float));
          for (size_t i = 0; i < width; ++i) sum[i] += part[i];
        }
      }
      return std::string(bytes_of(sum.data(), width));
    };
    const std::string sum = meet(std::string(bytes_of(data, width)), add_up);
    expect_size(sum, width * sizeof(float));
    std::memcpy(data, sum.data(), sum.size());
  }

  void all_gather_columns(const float* part, float* out, int64_t rows, const std::vector<int64_t>& widths) override {
    const std::string all =
        meet(std::string(bytes_of(part, static_cast<size_t>(rows * widths[rank()]))), [](const Parts& nodes) {
          std::string joined;
          for (const std::string& node : nodes) joined += node;
          return joined;
        });
    int64_t total = 0;
    for (const int64_t width : widths) total += width;
    expect_size(all, static_cast<size_t>(rows * total) * sizeof(float));
    const char* from = all.data();
    int64_t column = 0;
    for (const int64_t width : widths) {
      const size_t bytes = static_cast<size_t>(width) * sizeof(float);
      for (int64_t row = 0; row < rows && bytes > 0; ++row, from += bytes) std::memcpy(out + row * total + column, from, bytes);
      column += width;
    }
  }

  std::vector<std::string> exchange_bytes(std::string own) override {
    const auto all = meet(pack({std::move(own)}), [](const Parts& nodes) {
      std::string joined;
      for (const std::string& node : nodes) joined += node;
      return joined;
    });
    return unpack(all, static_cast<size_t>(world()));
  }

  std::vector<std::shared_ptr<void>> exchange(std::shared_ptr<void>) override {
    throw EngineError(ErrorCode::internal, "ranks of several processes were to show each other memory");
  }

  void on_shut_down(std::function<void()> notify) override { local_->on_shut_down(std::move(notify)); }
  void shut_down() override {
    local_->shut_down();
    node_->fail(EngineError(ErrorCode::device, node_->name_of(node_->index()) + " failed"));
  }

 private:
  // What `combine` makes of what the nodes bring: what their ranks bring, one behind the other.
  std::string meet(std::string own, const Node::Combine& combine) {
    std::string brought;
    for (const auto& part : local_->exchange(std::make_shared<std::string>(std::move(own))))
      if (local_->rank() == 0) brought += *static_cast<const std::string*>(part.get());
    std::shared_ptr<std::string> whole;
    if (local_->rank() == 0) whole = std::make_shared<std::string>(node_->meet(std::move(brought), combine));
    return *static_cast<const std::string*>(local_->exchange(whole)[0].get());
  }

  std::shared_ptr<Node> node_;
  std::shared_ptr<Comm> local_;
};

}  // namespace

std::vector<std::unique_ptr<Comm>> make_node_world(std::shared_ptr<Node> node, int n_local) {
  std::vector<std::unique_ptr<Comm>> ranks;
  std::vector<std::unique_ptr<Comm>> threads = make_thread_world(n_local);
  for (std::unique_ptr<Comm>& made : threads) {
    const std::shared_ptr<Comm> local = std::move(made);
    if (ranks.empty()) node->on_failure([local] { local->shut_down(); });
    ranks.push_back(std::make_unique<RankComm>(node, local));
  }
  return ranks;
}

}  // namespace sigmoe
