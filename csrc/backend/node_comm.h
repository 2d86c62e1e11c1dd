// Collectives of a world whose ranks are spread over several processes (node.h). Ranks of one node meet in memory, and the
// first of them meets the other nodes through the leader: right on any network, and only that. Devices that reach each other by
// means of their own use it to find each other.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "backend/comm.h"
#include "backend/node.h"

namespace sigmoe {

class NodeComm : public Comm {
 public:
  // As exchange(), which no pointer of another process can go through: bytes of every rank, in rank order.
  virtual std::vector<std::string> exchange_bytes(std::string own) = 0;
};

// Of this node's ranks, in order: ranks [index * n_local, (index + 1) * n_local) of node->count() * n_local.
std::vector<std::unique_ptr<Comm>> make_node_world(std::shared_ptr<Node> node, int n_local);

}  // namespace sigmoe
