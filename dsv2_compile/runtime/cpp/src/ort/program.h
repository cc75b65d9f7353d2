// One phase of an engine: an ONNX model, loaded, and a call of it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/manifest.h"
#include "ort/library.h"

namespace dsv2 {

// tokens [batch, width], past [batch], lengths [batch], per layer a contiguous cache [batch, context, cache_dim].
struct ProgramInputs {
  int64_t batch, width, context;
  std::vector<int64_t> tokens, past, lengths;
  std::vector<const float*> caches;
};

// logits [batch, vocab], rows [layers, batch, width, cache_dim].
struct ProgramOutputs {
  std::vector<float> logits, rows;
};

// Options of ``entry`` that an engine may not set. Those that it may name no file and load no code.
std::vector<std::string> disallowed_options(const ProgramEntry& entry);

class Program {
 public:
  // Error incompatible if the library cannot load ``path`` or it has not the inputs and outputs of a program.
  Program(const OrtLibrary& library, const std::string& path, const ProgramEntry& entry, const ModelConfig& config,
          int threads);

  // Caches are read in place. Outputs start as NaN, so a value that the program leaves out is seen by whoever checks
  // for NaN. Calls from several threads are safe.
  ProgramOutputs run(const ProgramInputs& inputs) const;

 private:
  void require_signature(const std::string& file);

  const OrtLibrary& library_;
  const ModelConfig config_;
  const std::string name_;  // "decode"
  OrtOwned<OrtSession> session_;
  std::vector<std::string> inputs_;  // in the order of ``run``
};

}  // namespace dsv2
