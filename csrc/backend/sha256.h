// SHA-256 (FIPS 180-4) and HMAC over it (RFC 2104): fingerprints of what nodes must agree on, and proofs that they share a
// secret. Small inputs: no speed is asked of it.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

namespace sigmoe {

using Digest = std::array<uint8_t, 32>;

Digest sha256(std::string_view bytes);
Digest hmac_sha256(std::string_view key, std::string_view bytes);
std::string hex(const Digest& digest);

// In a time that does not tell where they differ.
bool same_digest(std::string_view a, std::string_view b);

}  // namespace sigmoe
