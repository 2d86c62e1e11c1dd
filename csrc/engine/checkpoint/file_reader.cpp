// Positioned reads of a file on disk, and of bytes in memory for tests.
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "engine/checkpoint/safetensors.h"

namespace sigmoe {
namespace {

[[noreturn]] void io_error(const std::string& path, const char* asked, int error) {
  const bool absent = error == ENOENT || error == ENOTDIR;
  throw EngineError(absent ? ErrorCode::not_found : ErrorCode::io,
                    std::string(asked) + " " + path + ": " + std::strerror(error),
                    absent ? "check the path" : "check the permissions and the disk");
}

[[noreturn]] void changed_error(const std::string& path, const std::string& how) {
  throw EngineError(ErrorCode::file_changed, path + " " + how + " while it was being read",
                    "load again once the download or copy has finished");
}

class DiskFile : public FileReader {
 public:
  explicit DiskFile(const std::string& path) : path_(path) {
    // Non-blocking, so that a pipe someone put in the folder is refused below instead of waited for.
    do fd_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    while (fd_ < 0 && errno == EINTR);
    if (fd_ < 0) io_error(path, "opening", errno);
    if (::fstat(fd_, &opened_) != 0) {
      const int error = errno;
      ::close(fd_);
      io_error(path, "examining", error);
    }
    if (!S_ISREG(opened_.st_mode)) {
      ::close(fd_);
      throw EngineError(ErrorCode::bad_checkpoint, "opening " + path + ": not a regular file", "check the path");
    }
  }
  ~DiskFile() override { ::close(fd_); }
  DiskFile(const DiskFile&) = delete;
  DiskFile& operator=(const DiskFile&) = delete;

  const std::string& path() const override { return path_; }
  uint64_t size() const override { return static_cast<uint64_t>(opened_.st_size); }

  void read(uint64_t offset, void* out, size_t bytes) const override {
    std::array<iovec, 1> part{{{out, bytes}}};
    read_parts(offset, part.data(), 1);
  }

  // Rows closer together than a page or two cost less read through than sought to: the gaps go to a scratch area.
  void read_rows(uint64_t offset, uint64_t row_stride, size_t row_bytes, int64_t n_rows, void* out) const override {
    constexpr uint64_t kGapBytes = 8192;
    const uint64_t gap = row_stride - row_bytes;
    if (n_rows <= 1 || gap > kGapBytes) return FileReader::read_rows(offset, row_stride, row_bytes, n_rows, out);
    if (gap == 0) return read(offset, out, row_bytes * static_cast<size_t>(n_rows));
    std::array<char, kGapBytes> scratch;
    std::array<iovec, 512> parts;  // half of IOV_MAX rows a call
    auto* row = static_cast<char*>(out);
    while (n_rows > 0) {
      const int64_t rows = std::min<int64_t>(n_rows, static_cast<int64_t>(parts.size() / 2));
      for (int64_t i = 0; i < rows; ++i) {
        parts[2 * i] = {row + i * row_bytes, row_bytes};
        parts[2 * i + 1] = {scratch.data(), gap};
      }
      read_parts(offset, parts.data(), static_cast<int>(2 * rows - 1));  // no gap after the last row
      row += rows * row_bytes;
      offset += static_cast<uint64_t>(rows) * row_stride;
      n_rows -= rows;
    }
  }

  void check_unchanged() const override {
    struct stat now;
    if (::fstat(fd_, &now) != 0) io_error(path_, "examining", errno);
    if (now.st_size != opened_.st_size || now.st_mtim.tv_sec != opened_.st_mtim.tv_sec ||
        now.st_mtim.tv_nsec != opened_.st_mtim.tv_nsec)
      changed_error(path_, "changed");
  }

 private:
  // Fills all parts; consumes the array.
  void read_parts(uint64_t offset, iovec* parts, int n_parts) const {
    while (n_parts > 0) {
      if (parts->iov_len == 0) {
        ++parts, --n_parts;
        continue;
      }
      ssize_t got = ::preadv(fd_, parts, n_parts, static_cast<off_t>(offset));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) io_error(path_, "reading", errno);
      if (got == 0) changed_error(path_, "became shorter");
      offset += static_cast<uint64_t>(got);
      while (got > 0) {
        const size_t used = std::min<size_t>(static_cast<size_t>(got), parts->iov_len);
        parts->iov_base = static_cast<char*>(parts->iov_base) + used;
        parts->iov_len -= used;
        got -= static_cast<ssize_t>(used);
        if (parts->iov_len == 0) ++parts, --n_parts;
      }
    }
  }

  std::string path_;
  int fd_ = -1;
  struct stat opened_ {};
};

class MemoryFile : public FileReader {
 public:
  MemoryFile(std::string name, std::vector<std::byte> bytes) : name_(std::move(name)), bytes_(std::move(bytes)) {}
  const std::string& path() const override { return name_; }
  uint64_t size() const override { return bytes_.size(); }
  void read(uint64_t offset, void* out, size_t bytes) const override {
    if (offset > bytes_.size() || bytes > bytes_.size() - offset) changed_error(name_, "became shorter");
    if (bytes) std::memcpy(out, bytes_.data() + offset, bytes);
  }
  void check_unchanged() const override {}

 private:
  std::string name_;
  std::vector<std::byte> bytes_;
};

}  // namespace

void FileReader::read_rows(uint64_t offset, uint64_t row_stride, size_t row_bytes, int64_t n_rows, void* out) const {
  for (int64_t i = 0; i < n_rows; ++i)
    read(offset + static_cast<uint64_t>(i) * row_stride, static_cast<char*>(out) + i * row_bytes, row_bytes);
}

std::unique_ptr<FileReader> open_file(const std::string& path) { return std::make_unique<DiskFile>(path); }

std::unique_ptr<FileReader> memory_file(std::string name, std::vector<std::byte> bytes) {
  return std::make_unique<MemoryFile>(std::move(name), std::move(bytes));
}

}  // namespace sigmoe
