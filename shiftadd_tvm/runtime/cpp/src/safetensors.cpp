#include "safetensors.h"

#include <algorithm>
#include <optional>

#include "failure.h"
#include "json.h"

namespace shiftadd::internal {
namespace {

constexpr uint64_t kMaxHeader = 32 << 20;
constexpr int64_t kMaxBytes = int64_t{1} << 62;
constexpr size_t kMaxDimensions = 32;
constexpr size_t kMaxValues = 500'000;  // a tensor has 7 or so

struct Reader {
  const Bytes& file;
  const std::string& path;

  [[noreturn]] void bad(const std::string& what) const {
    fail(SHIFTADD_ERROR_BAD_FILE, path + " is not a valid safetensors file: " + what + "; get it again.");
  }

  size_t header_bytes() const {
    uint64_t length = 0;
    for (size_t i = 0; i < 8 && file.size >= 8; ++i) length |= uint64_t{file.data[i]} << 8 * i;
    if (file.size < 8 || length > std::min<uint64_t>(kMaxHeader, file.size - 8)) {
      bad("its header claims " + std::to_string(length) + " bytes, the file has " + std::to_string(file.size));
    }
    return static_cast<size_t>(length);
  }

  // The sizes that a list holds; nothing where it is no list of sizes.
  static std::optional<std::vector<int64_t>> sizes(json::Value list) {
    if (!list.is(json::Kind::kArray)) return std::nullopt;
    std::vector<int64_t> found;
    for (const json::Value value : list) {
      const int64_t size = value.whole().value_or(-1);
      if (size < 0 || size >= kMaxBytes) return std::nullopt;
      found.push_back(size);
    }
    return found;
  }

  static std::string shown(json::Value value) {
    return value ? quoted(value.source()) : std::string("missing");
  }

  static size_t element_bytes(const std::string& dtype) {
    static const std::unordered_map<std::string, size_t> kBytes = {
        {"BOOL", 1}, {"U8", 1}, {"I8", 1}, {"U16", 2}, {"I16", 2}, {"F16", 2}, {"BF16", 2},
        {"U32", 4}, {"I32", 4}, {"F32", 4}, {"U64", 8}, {"I64", 8}, {"F64", 8}};
    const auto found = kBytes.find(dtype);
    return found == kBytes.end() ? 0 : found->second;
  }

  // `size` bytes follow the header.
  StoredTensor tensor(json::Value entry, const unsigned char* begin, size_t size) const {
    const json::Value dtype = entry.find("dtype"), shape = entry.find("shape"), span = entry.find("data_offsets");
    const std::string name = "tensor " + quoted(entry.key());
    const std::string type(dtype.is(json::Kind::kString) ? dtype.string() : std::string_view());
    if (element_bytes(type) == 0) bad(name + " has dtype " + shown(dtype));
    const auto extents = sizes(shape), ends = sizes(span);
    if (!extents || !ends || ends->size() != 2 || extents->size() > kMaxDimensions) {
      bad(name + " has shape " + shown(shape) + " and offsets " + shown(span));
    }
    const int64_t from = (*ends)[0], to = (*ends)[1];
    if (from > to || static_cast<uint64_t>(to) > size) {
      bad(name + " lies at " + shown(span) + ", the data have " + std::to_string(size) + " bytes");
    }
    StoredTensor stored{type, *extents, begin + from, static_cast<size_t>(to - from)};
    uint64_t expected = element_bytes(type);
    for (const int64_t extent : *extents) {
      const uint64_t count = static_cast<uint64_t>(extent);
      if (count > 0 && expected > static_cast<uint64_t>(kMaxBytes) / count) bad(name + " is too large");
      expected *= count;
    }
    if (expected != stored.bytes) {
      bad(name + " needs " + std::to_string(expected) + " bytes for its shape, has " + std::to_string(stored.bytes));
    }
    return stored;
  }

  // The tensors by their names; `data` of `size` bytes follow the header.
  std::unordered_map<std::string, StoredTensor> tensors(std::string_view header, const unsigned char* data,
                                                        size_t size) const {
    std::unordered_map<std::string, StoredTensor> found;
    try {
      const json::Document document(header, kMaxValues);
      if (!document.root().is(json::Kind::kObject)) bad("its header is not a JSON object");
      for (const json::Value entry : document.root()) {
        if (entry.key() == "__metadata__") continue;
        const bool is_new = found.emplace(entry.key(), tensor(entry, data, size)).second;
        if (!is_new) bad("tensor " + quoted(entry.key()) + " stands in it twice");
      }
    } catch (const json::Error& error) {
      bad(std::string("its header cannot be read: ") + error.what());
    }
    return found;
  }
};

}  // namespace

std::unordered_map<std::string, StoredTensor> read_safetensors(const Bytes& file, const std::string& path) {
  const Reader reader{file, path};
  const size_t header = reader.header_bytes();
  const unsigned char* begin = file.data + 8 + header;
  const size_t size = file.size - 8 - header;
  auto tensors = reader.tensors(file.text().substr(8, header), begin, size);
  std::vector<std::pair<const unsigned char*, size_t>> spans;
  for (const auto& [name, tensor] : tensors) spans.emplace_back(tensor.data, tensor.bytes);
  std::sort(spans.begin(), spans.end());
  const unsigned char* end = begin;
  for (const auto& [data, bytes] : spans) {
    if (data != end) reader.bad("its tensors overlap or leave gaps");
    end = data + bytes;
  }
  if (end != begin + size) {
    reader.bad("its tensors need " + std::to_string(end - begin) + " bytes, the file holds " + std::to_string(size));
  }
  return tensors;
}

}  // namespace shiftadd::internal
