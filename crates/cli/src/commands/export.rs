//! `tinygpt export`.

use serde_json::json;
use tinygpt_model::{Checkpoint, gguf::write_gguf};

use crate::{
    args::ExportArgs,
    hub,
    output::{new_or_replaced, print_json, print_stdout},
};

pub fn run(args: &ExportArgs) -> anyhow::Result<()> {
    let checkpoint = Checkpoint::open(hub::folder(&args.run)?)?;
    let out = new_or_replaced(&args.gguf, args.overwrite, "--gguf")?;
    // The run's name is the model's.
    let name = args.run.canonicalize().ok().and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
    let (config, tokenizer) = (checkpoint.config(), checkpoint.tokenizer());
    let name = name.unwrap_or_else(|| "tinygpt".into());
    let architecture = write_gguf(&out, config, &checkpoint.weights().slices(), tokenizer, &name)?;
    let parameters = config.n_params();
    if args.json {
        return print_json(&json!({
            "gguf": args.gguf.display().to_string(), "architecture": architecture.model_type(), "name": name, "parameters": parameters,
        }));
    }
    Ok(print_stdout(&format!(
        "{}: {} \"{name}\", {parameters} parameters in f32\n",
        args.gguf.display(),
        architecture.model_type()
    ))?)
}
