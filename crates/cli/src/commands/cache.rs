//! `tinygpt cache`: what is kept of texts that were prepared, and how to be rid of it.

use std::fmt::Write as _;

use serde_json::json;
use tinygpt_trainer::{
    cache::{self, CacheKind},
    token_cache::default_cache_dir,
};

use crate::{
    args::CacheArgs,
    output::{print_json, print_stdout},
    units::{human_bytes, seconds_since_1970, utc},
};

pub fn run(args: &CacheArgs) -> anyhow::Result<()> {
    let folder = default_cache_dir();
    let files = if args.clear { cache::clear(&folder)? } else { cache::list(&folder)? };
    let bytes: u64 = files.iter().map(|file| file.bytes).sum();
    if args.json {
        let files: Vec<_> = files
            .iter()
            .map(|file| json!({ "path": file.path, "kind": file.kind, "bytes": file.bytes, "modified": seconds_since_1970(file.modified) }))
            .collect();
        return print_json(&json!({ "folder": folder, "cleared": args.clear, "bytes": bytes, "files": files }));
    }
    let mut text = String::new();
    for file in &files {
        let name = file.path.file_name().unwrap_or_default().to_string_lossy();
        let kind = match file.kind {
            CacheKind::Tokens => "tokens",
            CacheKind::Tokenizer => "tokenizer",
            CacheKind::Stories => "stories",
            CacheKind::Partial => "partial",
        };
        writeln!(
            text,
            "{:>10}  {} UTC  {kind:<9}  {name}",
            human_bytes(file.bytes as f64),
            utc(seconds_since_1970(file.modified))
        )?;
    }
    let (n, files) = (files.len(), if files.len() == 1 { "file" } else { "files" });
    let (size, folder) = (human_bytes(bytes as f64), folder.display());
    match (args.clear, n) {
        (true, _) => writeln!(text, "deleted {n} {files}, {size}, from {folder}")?,
        (false, 0) => writeln!(text, "nothing in {folder}")?,
        (false, _) => writeln!(text, "{n} {files}, {size}, in {folder}; `tinygpt cache --clear` deletes them")?,
    }
    Ok(print_stdout(&text)?)
}
