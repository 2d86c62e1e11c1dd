// Where a process of several finds the others (node.h).
#pragma once

#include <string>

namespace sigmoe {

struct NodeOptions {
  int index = 0, count = 1;           // one node: a world of this process alone, and nothing below matters
  std::string address = "127.0.0.1";  // of the leader
  int port = 29500;
  std::string secret;
  bool allow_no_secret = false;  // also on addresses that other machines reach
  int on_this_machine = 1;       // nodes that share its cores and memory
  int join_ms = 600'000;         // until all nodes have to be there
  int patience_ms = 30'000;      // a node that is silent for longer is gone
};

}  // namespace sigmoe
