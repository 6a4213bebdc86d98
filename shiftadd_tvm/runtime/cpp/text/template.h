// template.h: the tokens that a tokenizer puts around a text, such as BOS and EOS.
#ifndef SHIFTADD_TEXT_TEMPLATE_H_
#define SHIFTADD_TEXT_TEMPLATE_H_

#include <vector>

#include "../src/json.h"
#include "vocabulary.h"

namespace shiftadd::text {

class Template {
 public:
  // Of "post_processor" of a tokenizer.json, which may be null: ByteLevel (which moves offsets only),
  // RobertaProcessing, TemplateProcessing and Sequences of them. A Failure for any other.
  explicit Template(json::Value value) { read(value); }

  void run(std::vector<Id>* ids) const;

 private:
  void read(json::Value value);
  void read_template(json::Value value);

  // Outer templates come later in a Sequence, and wrap what is there.
  std::vector<Id> before_, after_;
};

}  // namespace shiftadd::text

#endif  // SHIFTADD_TEXT_TEMPLATE_H_
