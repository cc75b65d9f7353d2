#include "text/tokenizer_file.h"

#include <algorithm>
#include <initializer_list>
#include <optional>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "base/json.h"
#include "text/byte_alphabet.h"
#include "text/refuse.h"

namespace dsv2 {
namespace {

constexpr JsonLimits kLimits{kTokenizerBytes, 8'000'000};
// Bytes of an added token; all lengths that there are may be tried at every byte of a text.
constexpr size_t kMaxAdded = 256;
// How GPT-2 cuts words, which a ByteLevel pre-tokenizer does unless it says otherwise.
constexpr const char* kWords = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

using Ids = std::unordered_map<std::string_view, int32_t>;

bool is_off(const Json* value) {
  return !value || value->is_null() || (value->is_boolean() && !value->boolean());
}

bool flag(const Json& object, const char* key, bool otherwise) {
  const Json* value = object.find(key);
  return value ? value->boolean() : otherwise;
}

// Refuses members that nobody here reads; ``what`` names the object.
void only(const Json& object, const std::string& what, std::initializer_list<std::string_view> keys) {
  for (const auto& [key, value] : object.object()) {
    if (std::find(keys.begin(), keys.end(), key) == keys.end()) refuse(what + " with " + quoted(key));
  }
}

const std::string& type(const Json& object) { return object.at("type").string(); }

int32_t id_of(const Json& value, int64_t vocab_size) {
  const int64_t id = value.integer();
  if (id < 0 || id >= vocab_size) {
    malformed("token " + std::to_string(id) + ", the model has vocab_size " + std::to_string(vocab_size));
  }
  return static_cast<int32_t>(id);
}

// ---- Pre-tokenizers ------------------------------------------------------------------------------------------------

Behavior behavior(const std::string& name) {
  if (name == "Isolated") return Behavior::isolated;
  if (name == "Removed") return Behavior::removed;
  if (name == "Contiguous") return Behavior::contiguous;
  if (name == "MergedWithPrevious") return Behavior::merged_with_previous;
  if (name == "MergedWithNext") return Behavior::merged_with_next;
  malformed("a Split with behavior " + quoted(name));
}

std::string literal(const std::string& text) {
  if (text.empty()) refuse("a Split at an empty string");
  std::string escaped;
  for (const char c : text) {
    if (std::string_view("\\^$.|?*+()[]{}").find(c) != std::string_view::npos) escaped += '\\';
    escaped += c;
  }
  return escaped;
}

Split split(const Json& step) {
  only(step, "a Split", {"type", "pattern", "behavior", "invert"});
  const Json& pattern = step.at("pattern");
  only(pattern, "a Split", {"Regex", "String"});
  const Json* regex = pattern.find("Regex");
  return {regex ? regex->string() : literal(pattern.at("String").string()),
          behavior(step.at("behavior").string()), step.at("invert").boolean()};
}

// Adds one step; ``whole``: nothing may follow what has been read, which ends in a ByteLevel.
void read_pre_tokenizer(const Json& step, Cuts& cuts, bool& whole) {
  if (step.is_null()) return;
  const std::string& kind = type(step);
  if (kind == "Sequence") {
    only(step, "a pre-tokenizer", {"type", "pretokenizers"});
    for (const Json& inner : step.at("pretokenizers").array()) read_pre_tokenizer(inner, cuts, whole);
    return;
  }
  if (whole) refuse("a pre-tokenizer " + quoted(kind) + " after ByteLevel");
  if (kind == "Split") {
    cuts.splits.push_back(split(step));
  } else if (kind == "Digits") {
    only(step, "Digits", {"type", "individual_digits"});
    const bool each = step.at("individual_digits").boolean();
    cuts.splits.push_back({"\\p{N}", each ? Behavior::isolated : Behavior::contiguous, false});
  } else if (kind == "ByteLevel") {
    only(step, "ByteLevel", {"type", "add_prefix_space", "trim_offsets", "use_regex"});
    cuts.prefix_space = step.at("add_prefix_space").boolean();
    if (flag(step, "use_regex", true)) cuts.last = Split{kWords, Behavior::isolated, false};
    whole = true;
  } else {
    refuse("a pre-tokenizer " + quoted(kind));
  }
}

// ---- Model ---------------------------------------------------------------------------------------------------------

Ids read_vocab(const Json& vocab, int64_t vocab_size, TokenizerFile& out) {
  Ids ids;
  std::vector<bool> taken(out.texts.size());
  ids.reserve(vocab.object().size());
  for (const auto& [token, value] : vocab.object()) {
    const int32_t id = id_of(value, vocab_size);
    if (taken[static_cast<size_t>(id)]) malformed("two tokens with the id " + std::to_string(id));
    taken[static_cast<size_t>(id)] = true;
    ids.emplace(token, id);
    const std::optional<std::string> bytes = bytes_of(token);
    out.texts[static_cast<size_t>(id)] = bytes.value_or(token);
    if (bytes && !bytes->empty()) out.model.tokens.emplace_back(*bytes, id);
  }
  for (int byte = 0; byte < 256; ++byte) {
    const auto found = ids.find(byte_character(static_cast<unsigned char>(byte)));
    if (found == ids.end()) refuse("no token for byte " + std::to_string(byte));
    out.model.bytes[static_cast<size_t>(byte)] = found->second;
  }
  return ids;
}

std::pair<std::string, std::string> sides(const Json& merge) {
  if (!merge.is_string()) {
    const Array& pair = merge.array();
    if (pair.size() != 2) malformed("a merge of " + std::to_string(pair.size()) + " tokens");
    return {pair[0].string(), pair[1].string()};
  }
  const std::string& text = merge.string();
  const size_t space = text.find(' ');
  if (space == text.npos || text.find(' ', space + 1) != text.npos) malformed("merge " + quoted(text));
  return {text.substr(0, space), text.substr(space + 1)};
}

void read_merges(const Json& merges, const Ids& ids, BpeModel& out) {
  auto id = [&](const std::string& token) {
    const auto found = ids.find(token);
    if (found == ids.end()) malformed("a merge with " + quoted(token) + ", which the vocabulary has not");
    return found->second;
  };
  for (const Json& merge : merges.array()) {
    if (merge.is_string() && merge.string().rfind("#version", 0) == 0) continue;
    const auto [left, right] = sides(merge);
    out.merges.push_back({id(left), id(right), id(left + right)});
  }
}

Ids read_model(const Json& model, int64_t vocab_size, TokenizerFile& out) {
  if (type(model) != "BPE") refuse("a model " + quoted(type(model)));
  only(model, "a model", {"type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix",
                          "fuse_unk", "byte_fallback", "ignore_merges", "vocab", "merges"});
  for (const char* key : {"dropout", "unk_token", "fuse_unk", "byte_fallback"}) {
    if (!is_off(model.find(key))) refuse(std::string("a model with ") + key);
  }
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    const Json* affix = model.find(key);
    if (affix && !affix->is_null() && !affix->string().empty()) refuse(std::string("a model with ") + key);
  }
  out.model.ignore_merges = flag(model, "ignore_merges", false);
  Ids ids = read_vocab(model.at("vocab"), vocab_size, out);
  read_merges(model.at("merges"), ids, out.model);
  return ids;
}

// ---- What stands round the model -----------------------------------------------------------------------------------

void read_added(const Json& tokens, int64_t vocab_size, Ids& ids, TokenizerFile& out) {
  auto next = static_cast<int32_t>(ids.size());
  std::unordered_set<int32_t> seen;
  for (const Json& token : tokens.array()) {
    only(token, "an added token", {"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"});
    const std::string& content = token.at("content").string();
    for (const char* key : {"single_word", "lstrip", "rstrip"}) {
      if (token.at(key).boolean()) refuse("the added token " + quoted(content) + " with " + key);
    }
    if (content.size() > kMaxAdded) refuse("an added token of " + std::to_string(content.size()) + " bytes");
    const int32_t id = id_of(token.at("id"), vocab_size);
    // The id is that of the vocabulary or else the next one: so the tokenizers library counts, whatever the file says
    const auto [known, is_new] = ids.emplace(content, next);
    next += is_new;
    if (content.empty() || id != known->second || !seen.insert(id).second) {
      malformed("the added token " + quoted(content) + " with the id " + std::to_string(id));
    }
    const bool special = token.at("special").boolean();
    out.added.push_back({content, id, special, token.at("normalized").boolean()});
    out.texts[static_cast<size_t>(id)] = special ? "" : bytes_of(content).value_or(content);
  }
}

void read_template(const Json& post, int64_t vocab_size, TokenizerFile& out) {
  only(post, "TemplateProcessing", {"type", "single", "pair", "special_tokens"});
  bool text = false;
  for (const Json& piece : post.at("single").array()) {
    only(piece, "TemplateProcessing", {"Sequence", "SpecialToken"});
    if (const Json* sequence = piece.find("Sequence")) {
      if (text || sequence->at("id").string() != "A") refuse("TemplateProcessing that repeats a text");
      text = true;
      continue;
    }
    const std::string& name = piece.at("SpecialToken").at("id").string();
    for (const Json& id : post.at("special_tokens").at(name).at("ids").array()) {
      (text ? out.after : out.before).push_back(id_of(id, vocab_size));
    }
  }
  if (!text) refuse("TemplateProcessing that drops the text");
}

void read_post_processor(const Json& post, int64_t vocab_size, TokenizerFile& out) {
  if (post.is_null()) return;
  const std::string& kind = type(post);
  if (kind == "TemplateProcessing") {
    read_template(post, vocab_size, out);
  } else if (kind != "ByteLevel") {  // which changes offsets, and no tokens
    refuse("a post-processor " + quoted(kind));
  }
}

void require_no_normalizer(const Json& normalizer) {
  if (normalizer.is_null()) return;
  if (type(normalizer) != "Sequence") refuse("a normalizer " + quoted(type(normalizer)));
  for (const Json& inner : normalizer.at("normalizers").array()) require_no_normalizer(inner);
}

TokenizerFile read_file(const Json& file, int64_t vocab_size) {
  static const Json kNull{};
  auto member = [&](const char* key) -> const Json& { return file.find(key) ? *file.find(key) : kNull; };
  only(file, "a file", {"version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer",
                        "post_processor", "decoder", "model"});
  if (file.at("version").string() != "1.0") refuse("the version " + quoted(file.at("version").string()));
  for (const char* key : {"truncation", "padding"}) {
    if (!member(key).is_null()) refuse(key);
  }
  require_no_normalizer(member("normalizer"));

  TokenizerFile out;
  out.texts.resize(static_cast<size_t>(vocab_size));
  bool whole = false;
  read_pre_tokenizer(member("pre_tokenizer"), out.cuts, whole);
  if (!whole) refuse("no pre-tokenizer ByteLevel");
  if (type(file.at("decoder")) != "ByteLevel") refuse("a decoder " + quoted(type(file.at("decoder"))));
  Ids ids = read_model(file.at("model"), vocab_size, out);
  if (!member("added_tokens").is_null()) read_added(member("added_tokens"), vocab_size, ids, out);
  read_post_processor(member("post_processor"), vocab_size, out);
  return out;
}

}  // namespace

TokenizerFile parse_tokenizer(std::string_view data, int64_t vocab_size) {
  try {
    return read_file(parse_json(data, kLimits), vocab_size);
  } catch (const JsonError& e) {
    malformed(e.what());
  }
}

}  // namespace dsv2
