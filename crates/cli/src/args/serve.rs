//! The arguments of `serve`.

use std::{net::IpAddr, path::PathBuf};

use clap::Args;

use super::OpeningArgs;

/// Arguments of `serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Run folders, GPT-2, Qwen3 or Llama folders of Hugging Face, GGUF files, hf:NAME, or what `baseline --save` wrote; the
    /// first answers requests that name no model [default: the newest run in --runs].
    #[arg(value_name = "RUN")]
    pub models: Vec<PathBuf>,
    /// The address to listen at. Any other than this machine's own needs --api-key or --insecure.
    #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
    pub host: IpAddr,
    /// The port to listen at; 0 takes a free one, which is printed.
    #[arg(long, value_name = "N", default_value_t = 8000)]
    pub port: u16,
    /// What clients must send as `Authorization: Bearer KEY`.
    #[arg(long, value_name = "KEY", env = "TINYGPT_API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,
    /// Listen at an address that other machines reach without an --api-key.
    #[arg(long)]
    pub insecure: bool,
    /// A name of this server that requests may have in Host, beside localhost and addresses; repeatable.
    #[arg(long, value_name = "NAME")]
    pub allowed_host: Vec<String>,
    /// The folder whose runs the page shows.
    #[arg(long, value_name = "DIR", default_value = tinygpt_trainer::run::RUNS)]
    pub runs: PathBuf,
    /// Notice new weights of a run that is being trained, and serve them: for folders with a model.safetensors.
    #[arg(long)]
    pub reload: bool,
    /// Texts of a model that are computed side by side.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub slots: u16,
    /// Texts of a model that may wait; a request beyond them is told to come back (429).
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub queue: u16,
    /// Requests for texts and computations of one client address that are answered at a time; a request beyond them is told to come
    /// back (429). Clients behind a proxy have one address [default: no limit].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub per_client: Option<u16>,
    /// The longest that a request may take, in seconds; a year at most.
    #[arg(long, value_name = "S", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=31_536_000))]
    pub timeout: u64,
    /// How long requests may go on that run when the server is told to end, in seconds.
    #[arg(long, hide = true, value_name = "S", default_value_t = 5, value_parser = clap::value_parser!(u64).range(..=86_400))]
    pub grace: u64,
    #[command(flatten)]
    pub opening: OpeningArgs,
}
