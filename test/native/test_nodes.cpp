// Worlds of several nodes: what they say to each other over TCP, who is let in, and what broken bytes and lost nodes lead to.
// Nodes are threads here; test/engine/nodes.test.ts has processes.
#include <sys/socket.h>

#include <cstring>
#include <future>
#include <random>
#include <thread>

#include "backend/node_comm.h"
#include "backend/sha256.h"
#include "doctest/doctest.h"
#include "engine/engine.h"
#include "engine/nodes/step_codec.h"
#include "free_port.h"

using namespace sigmoe;
using sigmoe::testing::free_port;

namespace {

const std::string kNano = std::string(SIGMOE_SOURCE_DIR) + "/models/nano";

NodeOptions node_options(int index, int count, int port, const std::string& secret = "s3cret") {
  NodeOptions options;
  options.index = index;
  options.count = count;
  options.port = port;
  options.secret = secret;
  options.join_ms = 20'000;
  options.patience_ms = 20'000;
  return options;
}

std::string message_of(const std::function<void()>& work) {
  try {
    work();
  } catch (const EngineError& error) {
    return error.what();
  }
  return "no error";
}

// body(node) on a thread of each of `count` nodes; what each threw, empty where nothing was.
std::vector<std::string> on_nodes(int count, int ranks_each, const std::function<void(std::shared_ptr<Node>)>& body,
                                  int patience_ms = 20'000) {
  const int port = free_port();
  std::vector<std::string> errors(count);
  std::vector<std::thread> threads;
  for (int index = 0; index < count; ++index)
    threads.emplace_back([&, index] {
      try {
        NodeOptions options = node_options(index, count, port);
        options.patience_ms = patience_ms;
        body(std::make_shared<Node>(options, ranks_each, "model: a\n", nullptr));
      } catch (const EngineError& error) {
        errors[index] = error.what();
      }
    });
  for (std::thread& thread : threads) thread.join();
  return errors;
}

wire::Socket connect(int port) {
  std::string why;
  for (int i = 0; i < 500; ++i) {
    wire::Socket socket = wire::connect_to({"127.0.0.1", port}, wire::Milliseconds(1000), why);
    if (socket) return socket;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  FAIL(why);
  return wire::Socket();
}

}  // namespace

TEST_CASE("nodes: SHA-256 and HMAC as published") {
  CHECK(hex(sha256("")) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  CHECK(hex(sha256("abc")) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  CHECK(hex(sha256("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq")) ==
        "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  CHECK(hex(sha256(std::string(1'000'000, 'a'))) == "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
  // RFC 4231, cases 1, 2 and 6: a short key, a shorter one, and one longer than a block.
  CHECK(hex(hmac_sha256(std::string(20, '\x0b'), "Hi There")) ==
        "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7");
  CHECK(hex(hmac_sha256("Jefe", "what do ya want for nothing?")) ==
        "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
  CHECK(hex(hmac_sha256(std::string(131, '\xaa'), "Test Using Larger Than Block-Size Key - Hash Key First")) ==
        "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54");
  CHECK(same_digest("ab", "ab"));
  CHECK_FALSE(same_digest("ab", "aa"));
  CHECK_FALSE(same_digest("ab", "abc"));
}

TEST_CASE("nodes: sums and gathers of two nodes with two ranks each are those of four threads") {
  constexpr int kNodes = 2, kEach = 2, kRanks = kNodes * kEach, kRows = 3, kColumns = 41;
  const std::vector<int64_t> widths = {16, 16, 9, 0};
  const auto data_of = [](int rank) {
    std::mt19937 random(rank);
    std::vector<float> data(1000);
    for (float& value : data) value = std::uniform_real_distribution<float>(-1, 1)(random);
    return data;
  };
  struct Result {
    std::vector<float> sum, gathered;
  };
  const auto work = [&](Comm& comm) {
    Result result{data_of(comm.rank()), std::vector<float>(kRows * kColumns)};
    comm.all_reduce_sum(result.sum.data(), static_cast<int64_t>(result.sum.size()));
    const std::vector<float> part = data_of(comm.rank() + 10);
    comm.all_gather_columns(part.data(), result.gathered.data(), kRows, widths);
    return result;
  };
  std::vector<Result> expected(kRanks), got(kRanks);
  std::vector<std::thread> threads;
  const auto comms = make_thread_world(kRanks);
  for (int r = 0; r < kRanks; ++r) threads.emplace_back([&, r] { expected[r] = work(*comms[r]); });
  for (std::thread& thread : threads) thread.join();

  const auto errors = on_nodes(kNodes, kEach, [&](std::shared_ptr<Node> node) {
    const auto ranks = make_node_world(node, kEach);
    std::vector<std::thread> own;
    for (const auto& rank : ranks)
      own.emplace_back([&, &comm = *rank] {
        got[comm.rank()] = work(comm);
        const auto names = dynamic_cast<NodeComm&>(comm).exchange_bytes(std::string(comm.rank(), 'x'));
        CHECK(names == std::vector<std::string>{"", "x", "xx", "xxx"});
        CHECK(comm.world() == kRanks);
      });
    for (std::thread& thread : own) thread.join();
  });
  CHECK(errors == std::vector<std::string>(kNodes));
  for (int r = 0; r < kRanks; ++r) {
    CHECK(got[r].sum == expected[r].sum);
    CHECK(got[r].gathered == expected[r].gathered);
  }
}

TEST_CASE("nodes: who has another secret, model or rank is refused, and the world goes on or ends as it should") {
  const int port = free_port();
  auto leader = std::async(std::launch::async,
                           [&] { return std::make_unique<Node>(node_options(0, 2, port), 1, "model: a\n", nullptr); });
  CHECK(message_of([&] { Node(node_options(1, 2, port, "wrong"), 1, "model: a\n", nullptr); }).find("its secret is another") !=
        std::string::npos);
  SUBCASE("the right one is let in behind a wrong one") {
    Node follower(node_options(1, 2, port), 1, "model: a\n", nullptr);
    auto led = leader.get();
    led->tell("go");
    CHECK(follower.next(nullptr) == "go");
    led.reset();
    CHECK(follower.next(nullptr) == std::nullopt);
  }
  SUBCASE("another model ends both") {
    const std::string error = message_of([&] { Node(node_options(1, 2, port), 1, "model: b\n", nullptr); });
    CHECK(error.find("'model: b' there, 'model: a' on the leader") != std::string::npos);
    CHECK(message_of([&] { leader.get(); }).find("'model: b' there") != std::string::npos);
  }
  SUBCASE("a rank outside the world") {
    NodeOptions options = node_options(2, 2, port);
    CHECK(message_of([&] { Node(options, 1, "model: a\n", nullptr); }).find("outside the world of 2 nodes") !=
          std::string::npos);
    CHECK(message_of([&] { leader.get(); }).find("outside the world") != std::string::npos);
  }
}

TEST_CASE("nodes: garbage, silence and a stranger on the leader's port keep nobody out") {
  const int port = free_port();
  auto leader =
      std::async(std::launch::async, [&] { return std::make_unique<Node>(node_options(0, 2, port), 1, "", nullptr); });
  const auto say = [&](const std::string& bytes) {
    const wire::Socket socket = connect(port);
    REQUIRE(::send(socket.fd(), bytes.data(), bytes.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(bytes.size()));
  };
  say("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
  say(std::string(1000, '\xff'));
  std::string header("SGN1\x02\0\0\0\xff\xff\xff\xff\xff\xff\xff\x7f", 16);  // a join of 2^63 bytes
  say(header);
  header.replace(8, 8, std::string("\x10\0\0\0\0\0\0\0", 8));
  say(header + std::string(16, 'x'));  // too short for a proof
  { const wire::Socket gone = connect(port); }
  Node follower(node_options(1, 2, port), 1, "", nullptr);
  auto led = leader.get();
  led->tell("go");
  CHECK(follower.next(nullptr) == "go");
}

TEST_CASE("nodes: a follower that meets something else than a leader says so") {
  const int port = free_port();
  const wire::Socket listener = wire::listen_on({"127.0.0.1", port});
  std::thread other([&] {
    auto [socket, from] = wire::accept_within(listener, wire::Milliseconds(10'000));
    const std::string banner = "SSH-2.0-OpenSSH_9.2 and more than a header\r\n";
    CHECK(::send(socket.fd(), banner.data(), banner.size(), MSG_NOSIGNAL) > 0);
    char byte;
    while (recv(socket.fd(), &byte, 1, MSG_DONTWAIT) < 0 && errno == EAGAIN) std::this_thread::yield();
  });
  CHECK(message_of([&] { Node(node_options(1, 2, port), 1, "", nullptr); }).find("not what nodes of this version say") !=
        std::string::npos);
  other.join();
}

TEST_CASE("nodes: waits for others end") {
  const int port = free_port();
  NodeOptions options = node_options(0, 3, port);
  options.join_ms = 300;
  CHECK(message_of([&] { Node(options, 1, "", nullptr); }).find("1 of 3 nodes were at 127.0.0.1") != std::string::npos);
  options.index = 1;
  CHECK(message_of([&] { Node(options, 1, "", nullptr); }).find("no leader was at 127.0.0.1") != std::string::npos);
  std::atomic<bool> cancelled = false;
  options.join_ms = 60'000;
  auto waiting = std::async(std::launch::async, [&] { return message_of([&] { Node(options, 1, "", &cancelled); }); });
  cancelled = true;
  CHECK(waiting.get() == "loading was aborted");
}

TEST_CASE("nodes: without a secret only loopback addresses are taken") {
  NodeOptions options = node_options(0, 2, free_port(), "");
  options.join_ms = 50;
  CHECK(message_of([&] { Node(options, 1, "", nullptr); }).find("1 of 2 nodes were at") != std::string::npos);
  options.address = "192.0.2.1";
  CHECK(message_of([&] { Node(options, 1, "", nullptr); }).find("no secret is set") != std::string::npos);
  options.allow_no_secret = true;
  CHECK(message_of([&] { Node(options, 1, "", nullptr); }).find("the leader's address 192.0.2.1") != std::string::npos);
}

TEST_CASE("nodes: one that goes, falls silent or fails ends the waits of all, and is named") {
  SUBCASE("it goes") {
    const auto errors = on_nodes(3, 2, [](std::shared_ptr<Node> node) {
      if (node->index() == 1) return;  // its destructor says so
      node->meet("x", [](const auto& parts) { return parts[0]; });
    });
    CHECK(errors[0].find("ranks 2 to 3 (node 1) was told to end") != std::string::npos);
    CHECK(errors[2].find("ranks 2 to 3 (node 1) was told to end") != std::string::npos);
  }
  SUBCASE("it fails") {
    const auto errors = on_nodes(3, 1, [](std::shared_ptr<Node> node) {
      if (node->index() == 2) node->fail(EngineError(ErrorCode::device, "rank 2 has no memory left"));
      node->meet("x", [](const auto& parts) { return parts[0]; });
    });
    CHECK(errors == std::vector<std::string>(3, "rank 2 has no memory left"));
  }
  SUBCASE("they meet with other things than were due") {
    const auto errors = on_nodes(2, 1, [](std::shared_ptr<Node> node) {
      const auto ranks = make_node_world(node, 1);
      std::vector<float> data(node->index() == 0 ? 8 : 9);
      ranks[0]->all_reduce_sum(data.data(), static_cast<int64_t>(data.size()));
    });
    for (const std::string& error : errors) CHECK(error.find("where 32 were due") != std::string::npos);
  }
  SUBCASE("it falls silent") {
    const int port = free_port();
    NodeOptions options = node_options(0, 2, port);
    options.patience_ms = 300;
    auto leader = std::async(std::launch::async, [&] {
      return message_of([&] { Node(options, 1, "", nullptr).meet("x", [](const auto& parts) { return parts[0]; }); });
    });
    // A follower by hand: it joins as it should, and then neither speaks nor closes.
    const wire::Socket socket = connect(port);
    const wire::Milliseconds patience(5000);
    const std::string challenge = wire::receive(socket, 1 << 16, patience).body;
    const std::string said = std::string("\x01\0\0\0", 4) + std::string(32, 'n');
    const Digest proof = hmac_sha256("s3cret", "sigmoe join" + challenge + said);
    wire::send(socket, wire::Kind::join, said + std::string(reinterpret_cast<const char*>(proof.data()), 32), patience);
    CHECK(wire::receive(socket, 1 << 16, patience).kind == wire::Kind::welcome);
    CHECK(leader.get().find("rank 1 (node 1 at 127.0.0.1) is lost: nothing was heard for 300 ms") != std::string::npos);
  }
}

TEST_CASE("nodes: what is decoded of a step is what was encoded, and of broken bytes nothing") {
  StepInputs step;
  step.token_ids = {1, 2, 3, 4, 5};
  step.positions = {0, 1, 2, 130, 131};
  step.seq_offsets = {0, 3, 5};
  step.max_pages = 8;
  step.page_tables.assign(16, 0);
  step.page_tables[8] = 3;
  step.page_tables[9] = 4;
  step.feature_rows = {0, 1, 2, 7, 8};
  step.next_ids = {2, 3, 0, 5, 0};
  step.sample_row_ids = {2, 3, 4};
  step.sample_rows.resize(3);
  step.sample_rows[2].if_previous = 77;
  step.logits_row_ids = {0};
  step.mtp_row_ids = {1};
  CommandLimits limits;
  limits.vocab_size = 100;
  limits.runner.max_tokens = 16;
  limits.runner.max_seqs = 4;
  limits.runner.n_positions = 512;
  limits.runner.n_pages = 5;
  limits.runner.mtp = true;
  limits.runner.features.n_rows = 9;
  const std::string bytes = encode_step(step);
  CHECK(command_of(bytes) == NodeCommand::step);
  const StepInputs got = decode_step(bytes, limits);
  CHECK(encode_step(got) == bytes);
  CHECK(got.page_tables == step.page_tables);
  CHECK(got.sample_rows[2].if_previous >= 0);

  auto sequence = std::make_unique<Sequence>();
  sequence->tokens = {5, 6, 7, 8};
  sequence->pages = {2};
  DraftTask task;
  task.sequence = sequence.get();
  task.begin = 1;
  task.end = 3;
  task.feature_rows = 4;
  task.ring_row = 4;
  task.depth = 2;
  const std::string drafts = encode_drafts({task, task});
  const DecodedDrafts decoded = decode_drafts(drafts, limits);
  CHECK(encode_drafts(decoded.tasks) == drafts);

  std::mt19937 random(3);
  int n_refused = 0;
  for (int i = 0; i < 20'000; ++i) {
    std::string broken = i % 2 ? bytes : drafts;
    for (int changes = 1 + static_cast<int>(random() % 3); changes > 0 && broken.size() > 1; --changes) switch (random() % 3) {
        case 0: broken[1 + random() % (broken.size() - 1)] = static_cast<char>(random()); break;
        case 1: broken.resize(1 + random() % broken.size()); break;
        default: broken.insert(1 + random() % (broken.size() - 1), 1 + random() % 8, static_cast<char>(random()));
      }
    try {
      if (i % 2) {
        const StepInputs step = decode_step(broken, limits);
        CHECK(step.n_tokens() <= 16);
        for (const int32_t page : step.page_tables) CHECK((page >= 0 && page < 5));
      } else {
        for (const DraftTask& one : decode_drafts(broken, limits).tasks) CHECK(one.end + one.depth <= 512);
      }
    } catch (const EngineError&) {
      ++n_refused;
    }
  }
  CHECK(n_refused > 10'000);
  CHECK_THROWS_AS(command_of(""), EngineError);
  CHECK_THROWS_AS(command_of("\x07"), EngineError);
}

TEST_CASE("nodes: an engine on two nodes answers as one on one does, and ends its follower") {
  const auto answer = [](Engine& engine) {
    std::vector<int32_t> tokens;
    std::promise<void> done;
    engine.set_listener([&](StepEvent&& event) {
      for (size_t i = 0; i < event.requests.size(); ++i) {
        if (event.tokens[i] >= 0) tokens.push_back(event.tokens[i]);
        if (event.finish[i] != FinishReason::none) done.set_value();
      }
    });
    GenerateRequest request;
    for (int32_t i = 0; i < 150; ++i) request.prompt.push_back(i * 7 % 5000 + 10);
    request.max_tokens = 12;
    request.temperature = 0.7f;
    request.seed = 5;
    engine.submit(request);
    done.get_future().get();
    return tokens;
  };
  EngineOptions options;
  options.device = "cpu";
  options.n_threads = 1;
  options.tensor_parallel = 2;
  options.kv_cache_tokens = 2048;
  options.max_model_len = 1024;
  SUBCASE("plain") {}
  SUBCASE("with drafts of the MTP layer, which both have in parts") { options.speculation = "mtp"; }
  const std::vector<int32_t> expected = answer(*Engine::load(kNano, options));
  CHECK(expected.size() == 12);
  options.node = node_options(0, 2, free_port());
  std::atomic<bool> ready = false;
  std::thread follower([other = options, &ready]() mutable {
    other.node.index = 1;
    CHECK(message_of([&] {
            follow(
                kNano, other, {}, [&](const EngineInfo&) { ready = true; }, nullptr);
          }) == "no error");
  });
  auto engine = Engine::load(kNano, options);
  CHECK(answer(*engine) == expected);
  engine.reset();
  follower.join();
  CHECK(ready);
}
