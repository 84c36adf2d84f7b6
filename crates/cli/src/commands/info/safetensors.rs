//! What a safetensors file holds.

use std::path::Path;

use serde_json::json;
use tinygpt_model::checkpoint::SafetensorsSummary;

use crate::{
    output::{print_json, print_stdout},
    progress::in_thousands,
    units::human_bytes,
};

pub fn run(path: &Path, as_json: bool) -> anyhow::Result<()> {
    let summary = SafetensorsSummary::read(path)?;
    let elements: usize = summary.tensors.iter().map(|tensor| tensor.elements()).sum();
    let bytes: usize = summary.tensors.iter().map(|tensor| tensor.bytes).sum();
    if as_json {
        return print_json(&json!({
            "file": path.display().to_string(),
            "elements": elements,
            "bytes": bytes,
            "metadata": summary.metadata,
            "tensors": summary.tensors,
        }));
    }
    let mut text = format!(
        "{}: {} tensors, {} elements, {}\n",
        path.display(),
        summary.tensors.len(),
        in_thousands(elements),
        human_bytes(bytes as f64)
    );
    if !summary.metadata.is_empty() {
        text += "\nmetadata\n";
        for (key, value) in &summary.metadata {
            text += &format!("  {key} = {value:?}\n");
        }
    }
    text += "\ntensors\n";
    let width = summary.tensors.iter().map(|tensor| tensor.name.chars().count()).max().unwrap_or(0);
    for tensor in &summary.tensors {
        text += &format!("  {:<width$}  {:<5} {:?}\n", tensor.name, tensor.dtype, tensor.shape);
    }
    Ok(print_stdout(&text)?)
}
