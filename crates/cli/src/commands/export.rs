//! `tinygpt export`.

mod folder;

use serde_json::json;
use tinygpt_model::{
    Architecture, Checkpoint, Mlp,
    gguf::{GgufWritten, TensorType, write_gguf},
};

use crate::{
    args::ExportArgs,
    hub,
    output::{Usage, new_or_replaced, print_json, print_stdout},
};

pub fn run(args: &ExportArgs) -> anyhow::Result<()> {
    let mut checkpoint = Checkpoint::open(hub::folder(&args.run)?)?;
    if let Some(adapter) = &args.adapter {
        checkpoint = checkpoint.with_adapter(&hub::folder(adapter)?)?;
    }
    if let Some(out) = &args.out {
        let kind = args
            .dtype
            .float_type()
            .ok_or_else(|| Usage("blocks are for --gguf: a model folder is of --dtype f32, f16 or bf16".into()))?;
        return folder::write_model(&checkpoint, out, kind, args.json);
    }
    let gguf = args.gguf.as_deref().ok_or_else(|| Usage("give --gguf FILE, or --out DIR".into()))?;
    let out = new_or_replaced(gguf, args.overwrite, "--gguf")?;
    // The run's name is the model's.
    let path = args.run.canonicalize().unwrap_or_else(|_| args.run.clone()); // one of the hub is no path
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
    let (config, tokenizer) = (checkpoint.config(), checkpoint.tokenizer());
    let name = name.unwrap_or_else(|| "tinygpt".into());
    let kind: TensorType = args.dtype.into();
    let slices = checkpoint.weights().slices();
    let GgufWritten { architecture, without_blocks } = write_gguf(&out, config, &slices, tokenizer, &name, kind)?;
    if architecture == Architecture::Gpt2 && config.mlp == Mlp::Gelu {
        notice!(
            "note: llama.cpp computes GPT-2's approximation of GELU (model.mlp = \"gelu_new\"), this model the exact one: its \
             logits there are off by about 1e-3"
        );
    }
    if without_blocks > 0 {
        notice!("note: {without_blocks} matrices are in f16, since their rows are no multiple of 32 weights");
    }
    let parameters = config.n_params();
    if args.json {
        return print_json(&json!({
            "gguf": gguf.display().to_string(), "architecture": architecture.model_type(), "name": name,
            "parameters": parameters, "dtype": kind.name(),
        }));
    }
    Ok(print_stdout(&format!(
        "{}: {} \"{name}\", {parameters} parameters in {}\n",
        gguf.display(),
        architecture.model_type(),
        kind.name()
    ))?)
}
