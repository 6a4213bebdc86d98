#include "template.h"

#include "failure.h"

namespace shiftadd::text {

namespace {

Id read_id(json::Value value) {
  const int64_t id = value.integer();
  if (id < 0 || id >= 1 << 24) bad_file("a post-processor's token has the id " + std::to_string(id));
  return static_cast<Id>(id);
}

// The second element of ["</s>", 2].
Id read_pair(json::Value value) {
  if (value.size() != 2) bad_file("a post-processor's token is not a pair of text and id");
  return read_id(*++value.begin());
}

}  // namespace

void Template::read(json::Value value) {
  if (value.missing_or_null()) return;
  const std::string_view type = value.at("type").string();
  if (type == "Sequence") {
    for (const json::Value part : value.at("processors")) read(part);
  } else if (type == "TemplateProcessing") {
    read_template(value);
  } else if (type == "RobertaProcessing") {
    before_.insert(before_.begin(), read_pair(value.at("cls")));
    after_.push_back(read_pair(value.at("sep")));
  } else if (type != "ByteLevel") {
    unsupported("a post-processor of type " + quoted(type));
  }
}

void Template::read_template(json::Value value) {
  std::vector<Id> sides[2];
  int texts = 0;
  for (const json::Value piece : value.at("single")) {
    if (piece.find("Sequence")) {
      ++texts;
      continue;
    }
    const std::string_view name = piece.at("SpecialToken").at("id").string();
    for (const json::Value id : value.at("special_tokens").at(name).at("ids")) {
      sides[texts > 0].push_back(read_id(id));
    }
  }
  if (texts != 1) unsupported("a TemplateProcessing with the text " + std::to_string(texts) + " times");
  before_.insert(before_.begin(), sides[0].begin(), sides[0].end());
  after_.insert(after_.end(), sides[1].begin(), sides[1].end());
}

void Template::run(std::vector<Id>* ids) const {
  ids->insert(ids->begin(), before_.begin(), before_.end());
  ids->insert(ids->end(), after_.begin(), after_.end());
}

}  // namespace shiftadd::text
