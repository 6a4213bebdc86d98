#include "session.h"

#include <algorithm>
#include <cmath>

#include "failure.h"
#include "tensors.h"

namespace shiftadd::internal {
namespace {

const float* row_of(const Object& tensor, size_t row) {
  const DLTensor& d = tensor.tensor();
  return reinterpret_cast<const float*>(begin_of(d)) + row * d.shape[1];
}

// Check what a function gave: its kernels may be another model's.
const Object& checked_rows(const Object& result, size_t rows, int64_t width, const char* name) {
  const bool fits = result.is(kTVMFFITensor) && result.tensor().ndim == 2 &&
                    result.tensor().shape[0] == static_cast<int64_t>(rows) &&
                    (width < 0 || result.tensor().shape[1] == width) &&
                    element_type(result.tensor().dtype) == element_type(SHIFTADD_FLOAT32);
  if (!fits) {
    fail(SHIFTADD_ERROR_INTERNAL, std::string("Function ") + name + " gave something else than float32 rows.");
  }
  return result;
}

}  // namespace

Session::Session(const Session& other)
    : model_(other.model_), tokens_(other.tokens_), logits_owner_(other.logits_owner_), logits_row_(other.logits_row_) {
  const size_t page = model_->decoder().page;
  const size_t held = (tokens_.size() + page - 1) / page;
  pages_.assign(other.pages_.begin(), other.pages_.begin() + held);
  for (const int32_t shared : pages_) model_->cache().share(shared);
}

void Session::truncate(size_t length) {
  if (length > tokens_.size()) {
    misuse("The session holds " + std::to_string(tokens_.size()) + " tokens, it cannot be cut to " + std::to_string(length) + ".");
  }
  const size_t page = model_->decoder().page;
  const size_t held = (length + page - 1) / page;
  for (; pages_.size() > held; pages_.pop_back()) model_->cache().release(pages_.back());
  if (length == tokens_.size()) return;
  tokens_.resize(length);
  logits_owner_ = Object();
}

void Session::reset() {
  truncate(0);
  cancelled_.store(false);
}

void Session::stop_if_cancelled() {
  if (cancelled_.exchange(false)) fail(SHIFTADD_CANCELLED, "The call was cancelled.");
}

void Session::check(const int32_t* tokens, size_t count) const {
  const int32_t vocabulary = model_->decoder().vocabulary;
  for (size_t i = 0; i < count; ++i) {
    if (tokens[i] < 0 || tokens[i] >= vocabulary) {
      misuse("Token id " + std::to_string(tokens[i]) + " is outside the vocabulary of " + std::to_string(vocabulary) + ".");
    }
  }
}

// Take the pages that `count` more tokens need, and copy the one that is written and shared.
void Session::reserve(size_t count) {
  const size_t context = model_->decoder().context, page = model_->decoder().page, held = tokens_.size();
  if (count > context - held) {
    misuse("The sequence would grow to " + std::to_string(held + count) + " tokens, the artifact's context is " +
           std::to_string(context) + "; shorten it, or compile with a larger --context.");
  }
  const size_t pages = (held + count + page - 1) / page;
  pages_.reserve(pages);  // so that no page is lost when memory is used up
  Cache& cache = model_->cache();
  if (held % page != 0 && cache.is_shared(pages_[held / page])) {
    const int32_t own = cache.copy(pages_[held / page]);
    cache.release(std::exchange(pages_[held / page], own));
  }
  while (pages_.size() < pages) pages_.push_back(cache.take());
}

std::vector<int32_t> Session::table() const {
  const Decoder& decoder = model_->decoder();
  std::vector<int32_t> table(pages_);
  table.resize((decoder.context + decoder.page - 1) / decoder.page);
  return table;
}

void Session::keep_logits(Object owner, size_t row) {
  logits_row_ = row;
  logits_owner_ = std::move(owner);
}

Object Session::logits_row() const {
  if (!logits_owner_) misuse("The session has no logits; prefill or decode first.");
  return model_->machine().memory().rows(logits_owner_, logits_row_, 1);
}

const float* Session::logits() {
  if (!logits_owner_) return nullptr;
  const Memory& memory = model_->machine().memory();
  if (!memory.is_host()) keep_logits(memory.download(logits_row()), 0);
  return row_of(logits_owner_, logits_row_);
}

// Call a decode function or prefill; on the model's thread.
Object Session::step(const char* name, const Object& ids, const Object& tables, const Object& lengths) {
  std::vector<Named> arguments = {{"ids", ids}, {"x", ids}, {"block_table", tables}, {"length", lengths}};
  for (const Cache::Tensor& cached : model_->cache().tensors()) arguments.push_back({cached.name, cached.tensor});
  return model_->machine().call(model_->function(name), arguments);
}

void Session::prefill(const int32_t* tokens, size_t count, const OnLogits& on_logits) {
  if (count == 0) misuse("The prompt is empty; give at least one token.");
  check(tokens, count);
  reserve(count);
  const Decoder& decoder = model_->decoder();
  const bool in_one_step = std::count(decoder.batches.begin(), decoder.batches.end(), static_cast<int32_t>(count)) > 0;
  if (!on_logits && in_one_step && count <= static_cast<size_t>(decoder.lookup_rows)) {
    stop_if_cancelled();
    model_->machine().run([&] { look_up(tokens, count); });
    return;
  }
  const size_t chunk = decoder.chunk;
  for (size_t begin = 0; begin < count; begin += chunk) {
    stop_if_cancelled();
    const size_t part = std::min(chunk, count - begin);
    append(tokens + begin, part, begin + part == count, on_logits);
  }
}

// A decode step appends all its rows before any attends, so they may be of one sequence.
void Session::look_up(const int32_t* tokens, size_t count) {
  const std::vector<int32_t> one = table();
  std::vector<int32_t> tables, lengths;
  for (size_t i = 0; i < count; ++i) {
    tables.insert(tables.end(), one.begin(), one.end());
    lengths.push_back(static_cast<int32_t>(tokens_.size() + i));
  }
  const int64_t rows = static_cast<int64_t>(count);
  const std::string name = "decode_b" + std::to_string(count);
  Object logits = step(name.c_str(), int32_tensor({tokens, tokens + count}),
                       int32_tensor(tables, {rows, static_cast<int64_t>(one.size())}), int32_tensor(lengths));
  checked_rows(logits, count, model_->decoder().vocabulary, name.c_str());
  tokens_.insert(tokens_.end(), tokens, tokens + count);
  keep_logits(std::move(logits), count - 1);
}

// Append at most a chunk of tokens by prefill; the logits of the last of all are kept.
void Session::append(const int32_t* tokens, size_t count, bool last, const OnLogits& on_logits) {
  Object hidden;
  model_->machine().run([&] {
    Machine& machine = model_->machine();
    const Object ids = int32_tensor({tokens, tokens + count});
    const Object x = machine.call(model_->function("embed"), {{"ids", ids}});
    const std::vector<int32_t> pages = table();
    const Object tables = int32_tensor(pages, {1, static_cast<int64_t>(pages.size())});
    hidden = step("prefill", x, tables, int32_tensor({static_cast<int32_t>(tokens_.size())}));
    checked_rows(hidden, count, -1, "prefill");
    tokens_.insert(tokens_.end(), tokens, tokens + count);
    logits_owner_ = Object();
    if (on_logits || !last) return;
    Object logits = machine.call(model_->function("logits"), {{"x", machine.memory().rows(hidden, count - 1, 1)}});
    keep_logits(checked_rows(logits, 1, model_->decoder().vocabulary, "logits"), 0);
  });
  if (on_logits) score(hidden, count, on_logits);
}

void Session::score(const Object& hidden, size_t count, const OnLogits& on_logits) {
  const Decoder& decoder = model_->decoder();
  const size_t most = decoder.logit_rows;
  for (size_t begin = 0; begin < count; begin += most) {
    stop_if_cancelled();
    const size_t rows = std::min(most, count - begin);
    Object logits;
    model_->machine().run([&] {
      Machine& machine = model_->machine();
      const Object x = machine.memory().rows(hidden, begin, rows);
      logits = machine.call(model_->function("logits"), {{"x", x}});
      logits = machine.memory().download(checked_rows(logits, rows, decoder.vocabulary, "logits"));
    });
    keep_logits(logits, rows - 1);
    if (!on_logits(row_of(logits, 0), rows)) fail(SHIFTADD_CANCELLED, "The callback ended the call.");
  }
}

void Session::decode(int32_t token) { decode({this}, &token); }

void Session::decode(const std::vector<Session*>& sessions, const int32_t* tokens) {
  Model& model = sessions[0]->model();
  const Decoder& decoder = model.decoder();
  const size_t count = sessions.size();
  if (std::count(decoder.batches.begin(), decoder.batches.end(), static_cast<int64_t>(count)) == 0) {
    std::string known;
    for (const int32_t batch : decoder.batches) known += (known.empty() ? "" : ", ") + std::to_string(batch);
    misuse(std::to_string(count) + " sequences at once; expected one of " + known + ".");
  }
  std::vector<int32_t> tables, lengths;
  for (size_t i = 0; i < count; ++i) {
    Session& session = *sessions[i];
    session.check(tokens + i, 1);
    session.stop_if_cancelled();
    session.reserve(1);
    const std::vector<int32_t> table = session.table();
    tables.insert(tables.end(), table.begin(), table.end());
    lengths.push_back(static_cast<int32_t>(session.tokens_.size()));
    session.tokens_.reserve(session.tokens_.size() + 1);  // so that all sessions go on, or none
  }
  const std::string name = "decode_b" + std::to_string(count);
  Object logits;
  model.machine().run([&] {
    const int64_t rows = static_cast<int64_t>(count);
    const int64_t width = static_cast<int64_t>(tables.size() / count);
    logits = sessions[0]->step(name.c_str(), int32_tensor({tokens, tokens + count}),
                               int32_tensor(tables, {rows, width}), int32_tensor(lengths));
    checked_rows(logits, count, decoder.vocabulary, name.c_str());
  });
  for (size_t i = 0; i < count; ++i) {
    sessions[i]->tokens_.push_back(tokens[i]);
    sessions[i]->keep_logits(logits, i);
  }
}

void check_sampling(const shiftadd_sampling& s) {
  const auto require = [](bool valid, const char* what) {
    if (!valid) misuse(std::string("The sampling's ") + what + ".");
  };
  require(s.temperature >= 0 && s.temperature < 1e6f, "temperature is outside of 0 to 1000000");
  require(s.top_k >= 0, "top_k is negative");
  require(s.top_p > 0 && s.top_p <= 1, "top_p is not above 0 and at most 1");
  require(s.repetition_penalty > 0 && s.repetition_penalty < 1e6f, "repetition_penalty is not above 0");
  require(s.seed >= 0, "seed is negative");
}

// Choose a token; on the model's thread.
int32_t Session::draw(const shiftadd_sampling& s, int32_t step) {
  const Object logits = logits_row();
  const int32_t penalized = s.repetition_penalty == 1 ? 0 : static_cast<int32_t>(tokens_.size());
  const std::vector<int32_t> held = penalized ? tokens_ : std::vector<int32_t>{0};
  const Object history = int32_tensor(held, {1, static_cast<int64_t>(held.size())});
  const Object length = int32_tensor({penalized}), top_k = int32_tensor({s.top_k}), steps = int32_tensor({step});
  const Object temperature = float_tensor(s.temperature), top_p = float_tensor(s.top_p);
  const Object penalty = float_tensor(s.repetition_penalty), seed = int64_tensor(s.seed);
  const std::vector<Named> arguments = {
      {"logits", logits}, {"history", history}, {"length", length},   {"temperature", temperature}, {"top_k", top_k},
      {"top_p", top_p},   {"penalty", penalty}, {"seed", seed},       {"step", steps},
  };
  const Object drawn = model_->machine().call(model_->function("sample"), arguments);
  const bool one = drawn.is(kTVMFFITensor) && drawn.tensor().ndim == 1 && drawn.tensor().shape[0] == 1 &&
                   element_type(drawn.tensor().dtype) == element_type(SHIFTADD_INT32);
  if (!one) fail(SHIFTADD_ERROR_INTERNAL, "Function sample gave something else than a token.");
  const Object read = model_->machine().memory().download(drawn);
  const DLTensor& d = read.tensor();
  return *reinterpret_cast<const int32_t*>(begin_of(d));
}

int32_t Session::sample(const shiftadd_sampling& sampling, int32_t step) {
  check_sampling(sampling);
  if (step < 0) misuse("step is " + std::to_string(step) + ", expected 0 or more.");
  if (!logits_owner_) misuse("The session has no logits; prefill or decode first.");
  int32_t token = 0;
  model_->machine().run([&] { token = draw(sampling, step); });
  return token;
}

Session::Use::Use(Session& session, bool reads) : session_(session), entered_(false) {
  std::thread::id user{};
  const std::thread::id self = std::this_thread::get_id();
  entered_ = session.user_.compare_exchange_strong(user, self);
  if (entered_ || (reads && user == self)) return;  // a callback may look, not touch
  misuse(user == self ? "A callback may not change its session."
                      : "The session is used by another call; use one session for each thread.");
}

Session::Use::~Use() {
  if (entered_) session_.user_.store(std::thread::id());
}

Session& checked(shiftadd_session* session) {
  if (!session) misuse("The session is NULL; expected one that shiftadd_session_create gave.");
  return session->session;
}

}  // namespace shiftadd::internal
