#include "ort/program.h"

#include <algorithm>
#include <filesystem>
#include <limits>
#include <map>
#include <set>

#include "base/error.h"

namespace dsv2 {
namespace {

constexpr size_t kListed = 20;  // problems of a signature that an error tells

const std::set<std::string> kOptions = {
    "session.disable_prepacking",       "session.force_spinning_stop",
    "session.intra_op.allow_spinning",  "session.set_denormal_as_zero",
    "session.use_device_allocator_for_initializers",
};

// ONNXTensorElementDataType, or 0 for what is no tensor, and the number of dims.
using ArgumentType = std::pair<int, size_t>;
using Signature = std::map<std::string, ArgumentType>;

using TypeOf = OrtStatus* (*)(const OrtSession*, size_t, OrtTypeInfo**);
using NameOf = OrtStatus* (*)(const OrtSession*, size_t, OrtAllocator*, char**);

ArgumentType argument_type(const OrtLibrary& library, const OrtTypeInfo* type, const std::string& action) {
  int kind = 0, dtype = 0;
  size_t rank = 0;
  library.require(library.api().type_kind(type, &kind), action, true);
  if (kind != kOrtTensor) return {0, 0};
  const OrtTensorInfo* tensor = nullptr;  // a part of ``type``
  library.require(library.api().tensor_info(type, &tensor), action, true);
  library.require(library.api().element_type(tensor, &dtype), action, true);
  library.require(library.api().rank(tensor, &rank), action, true);
  return {dtype, rank};
}

void read_arguments(const OrtLibrary& library, const OrtSession* session, size_t count, NameOf name_of, TypeOf type_of,
                    const std::string& action, Signature* out) {
  const OrtApi& api = library.api();
  OrtAllocator* allocator = nullptr;
  library.require(api.default_allocator(&allocator), action, true);
  for (size_t i = 0; i < count; ++i) {
    OrtTypeInfo* raw = nullptr;
    library.require(type_of(session, i, &raw), action, true);
    OrtOwned<OrtTypeInfo> type(raw, api.release_type_info);
    char* text = nullptr;
    library.require(name_of(session, i, allocator, &text), action, true);
    std::string name = text;
    library.require(api.allocator_free(allocator, text), action, true);
    (*out)[name] = argument_type(library, type.get(), action);
  }
}

Signature wanted_signature(int64_t layers, bool has_lengths) {
  Signature out = {{"tokens", {kOrtInt64, 2}}, {"past", {kOrtInt64, 1}}, {"logits", {kOrtFloat, 2}},
                   {"rows", {kOrtFloat, 4}}};
  if (has_lengths) out["lengths"] = {kOrtInt64, 1};
  for (int64_t i = 0; i < layers; ++i) out["cache." + std::to_string(i)] = {kOrtFloat, 3};
  return out;
}

OrtOwned<OrtSession> load(const OrtLibrary& library, const std::string& path, const ProgramEntry& entry, int threads,
                          const std::string& action) {
  const OrtApi& api = library.api();
  OrtSessionOptions* raw_options = nullptr;
  library.require(api.create_session_options(&raw_options), action, true);
  OrtOwned<OrtSessionOptions> options(raw_options, api.release_session_options);
  library.require(api.set_intra_op_threads(options.get(), threads), action, true);
  library.require(api.set_inter_op_threads(options.get(), 1), action, true);
  library.require(api.set_log_severity(options.get(), kOrtFatal), action, true);  // errors are raised, not printed
  for (const auto& [key, value] : entry.session_options) {
    library.require(api.add_config_entry(options.get(), key.c_str(), value.c_str()), action, true);
  }
  OrtSession* session = nullptr;
  library.require(api.create_session(library.env(), path.c_str(), options.get(), &session), action, true);
  return {session, api.release_session};
}

std::vector<float> unwritten(int64_t values) {
  return std::vector<float>(static_cast<size_t>(values), std::numeric_limits<float>::quiet_NaN());
}

// Tensors over memory of the caller's.
class Tensors {
 public:
  Tensors(const OrtLibrary& library, const std::string& action) : library_(library), action_(action) {}

  template <typename T>
  void add(const T* data, const std::vector<int64_t>& shape) {
    static_assert(sizeof(T) == 8 || sizeof(T) == 4);
    size_t nbytes = sizeof(T);
    for (int64_t dim : shape) nbytes *= static_cast<size_t>(dim);
    OrtValue* raw = nullptr;
    // the C API has one type of tensor for what is read and what is written
    void* memory = const_cast<void*>(static_cast<const void*>(data));
    int dtype = sizeof(T) == 8 ? kOrtInt64 : kOrtFloat;
    library_.require(
        library_.api().create_tensor(library_.memory(), memory, nbytes, shape.data(), shape.size(), dtype, &raw),
        action_, false);
    owned_.emplace_back(raw, library_.api().release_value);
    values_.push_back(raw);
  }

  OrtValue** values() { return values_.data(); }
  size_t count() const { return values_.size(); }

 private:
  const OrtLibrary& library_;
  const std::string& action_;
  std::vector<OrtOwned<OrtValue>> owned_;
  std::vector<OrtValue*> values_;
};

}  // namespace

std::vector<std::string> disallowed_options(const ProgramEntry& entry) {
  std::vector<std::string> out;
  for (const auto& [key, value] : entry.session_options) {
    if (!kOptions.count(key)) out.push_back(key);
  }
  return out;
}

Program::Program(const OrtLibrary& library, const std::string& path, const ProgramEntry& entry,
                 const ModelConfig& config, int threads)
    : library_(library),
      config_(config),
      name_(std::filesystem::path(path).stem()),
      session_(load(library, path, entry, threads, "load " + std::filesystem::path(path).filename().string())) {
  require_signature(std::filesystem::path(path).filename());
}

// The contract between compiler and runtime: names, dtypes and ranks of inputs and outputs.
void Program::require_signature(const std::string& file) {
  const OrtApi& api = library_.api();
  const std::string action = "load " + file;
  size_t inputs = 0, outputs = 0;
  library_.require(api.input_count(session_.get(), &inputs), action, true);
  library_.require(api.output_count(session_.get(), &outputs), action, true);
  Signature found;
  read_arguments(library_, session_.get(), inputs, api.input_name, api.input_type, action, &found);
  bool has_lengths = found.count("lengths");
  read_arguments(library_, session_.get(), outputs, api.output_name, api.output_type, action, &found);
  Signature wanted = wanted_signature(config_.num_hidden_layers, has_lengths);
  if (found != wanted) {
    std::set<std::string> differ;
    for (const auto& [name, type] : found) {
      if (auto it = wanted.find(name); it == wanted.end() || it->second != type) differ.insert(name);
    }
    for (const auto& [name, type] : wanted) {
      if (!found.count(name)) differ.insert(name);
    }
    std::vector<std::string> listed(differ.begin(), differ.end());
    listed.resize(std::min(listed.size(), kListed));
    throw Error(DSV2_INCOMPATIBLE, file + " does not have the inputs and outputs of an engine program.",
                "Rebuild the engine with this version of dsv2-compile.", listed);
  }
  inputs_ = {"tokens", "past"};
  if (has_lengths) inputs_.push_back("lengths");
  for (int64_t i = 0; i < config_.num_hidden_layers; ++i) inputs_.push_back("cache." + std::to_string(i));
}

ProgramOutputs Program::run(const ProgramInputs& in) const {
  const int64_t width = config_.cache_dim();
  ProgramOutputs out = {unwritten(in.batch * config_.vocab_size),
                        unwritten(config_.num_hidden_layers * in.batch * in.width * width)};
  const std::string action = "run " + name_;
  Tensors inputs(library_, action), outputs(library_, action);
  inputs.add(in.tokens.data(), {in.batch, in.width});
  inputs.add(in.past.data(), {in.batch});
  if (inputs_[2] == "lengths") inputs.add(in.lengths.data(), {in.batch});
  for (const float* cache : in.caches) inputs.add(cache, {in.batch, in.context, width});
  outputs.add(out.logits.data(), {in.batch, config_.vocab_size});
  outputs.add(out.rows.data(), {config_.num_hidden_layers, in.batch, in.width, width});
  std::vector<const char*> names;
  for (const std::string& name : inputs_) names.push_back(name.c_str());
  const char* const results[] = {"logits", "rows"};
  library_.require(library_.api().run(session_.get(), nullptr, names.data(), inputs.values(), inputs.count(), results,
                                      outputs.count(), outputs.values()),
                   action, false);
  return out;
}

}  // namespace dsv2
