//! `tinygpt export`.

mod merge;

use serde_json::json;
use tinygpt_model::{Checkpoint, gguf::write_gguf};

use crate::{
    args::ExportArgs,
    output::{Usage, new_or_replaced, print_json, print_stdout},
};

pub fn run(args: &ExportArgs) -> anyhow::Result<()> {
    let mut checkpoint = Checkpoint::open(&args.run)?;
    if let Some(adapter) = &args.adapter {
        checkpoint = checkpoint.with_adapter(adapter)?;
    }
    if let Some(out) = &args.out {
        return merge::write_model(&checkpoint, out, args.json);
    }
    let gguf = args.gguf.as_deref().ok_or_else(|| Usage("give --gguf FILE, or --merge --out DIR".into()))?;
    let out = new_or_replaced(gguf, args.overwrite, "--gguf")?;
    // The run's name is the model's.
    let name = args.run.canonicalize().ok().and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
    let (config, tokenizer) = (checkpoint.config(), checkpoint.tokenizer());
    let name = name.unwrap_or_else(|| "tinygpt".into());
    let architecture = write_gguf(&out, config, &checkpoint.weights().slices(), tokenizer, &name)?;
    let parameters = config.n_params();
    if args.json {
        return print_json(&json!({
            "gguf": gguf.display().to_string(), "architecture": architecture.model_type(), "name": name, "parameters": parameters,
        }));
    }
    Ok(print_stdout(&format!(
        "{}: {} \"{name}\", {parameters} parameters in f32\n",
        gguf.display(),
        architecture.model_type()
    ))?)
}
