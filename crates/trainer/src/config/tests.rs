#![allow(clippy::unwrap_used, reason = "test code")]

use super::{
    schema::{FREE_ON_RESUME, defaults, fields, later_keys, missing_key},
    *,
};

fn error(text: &str) -> String {
    load(text, &[], false).unwrap_err().to_string()
}

#[test]
fn the_table_of_fields_is_exactly_the_configuration() {
    let mut keys = Vec::new();
    for (name, value) in &defaults().unwrap() {
        match value.as_table() {
            Some(table) => keys.extend(table.keys().map(|k| format!("{name}.{k}"))),
            None => keys.push(name.clone()),
        }
    }
    let documented: Vec<_> = fields().map(|f| f.key.to_owned()).collect();
    let sorted = |mut v: Vec<String>| {
        v.sort();
        v
    };
    assert_eq!(sorted(keys), sorted(documented));
    assert!(
        FREE_ON_RESUME
            .iter()
            .copied()
            .chain(later_keys().map(|(key, _)| key))
            .all(|key| fields().any(|f| f.key == key))
    );
}

#[test]
fn the_annotated_default_reads_back_as_the_default() {
    let config = load(&annotated_default().unwrap(), &[], false).unwrap();
    let expected = load("", &[], false).unwrap();
    assert_eq!(config, expected);
    assert_eq!(load(&expected.to_toml().unwrap(), &[], false).unwrap(), expected);
}

#[test]
fn an_unknown_key_is_refused_and_the_nearest_named() {
    assert_eq!(
        error("[train]\nmax_step = 5"),
        "unknown key `train.max_step`; did you mean `train.max_steps`?; `tinygpt config` lists all keys"
    );
    assert!(error("[model]\nn_layers = 5").contains("`model.n_layer`"));
    assert!(error("[train]\nlearning_rate = 5").contains("unknown key `train.learning_rate`"));
    assert!(error("[modle]\nn_layer = 5").contains("did you mean `model`?"));
    assert!(error("n_layer = 5").contains("`model.n_layer`"));
    let message = load("", &["data=a.txt".into()], false).unwrap_err().to_string();
    assert!(message.contains("unknown key `data`; did you mean `data."), "{message}");
    let message = load("", &["train.lrr=1".into()], false).unwrap_err().to_string();
    assert!(message.starts_with("--set train.lrr=1: ") && message.contains("`train.lr`"), "{message}");
}

#[test]
fn a_wrong_type_is_refused_and_both_types_named() {
    assert_eq!(error("[train]\nmax_steps = \"5\""), "`train.max_steps` must be a whole number, not a string");
    assert_eq!(error("[train]\nmax_steps = 5.5"), "`train.max_steps` must be a whole number, not a number");
    assert_eq!(error("[model]\nbias = 1"), "`model.bias` must be true or false, not a whole number");
    assert_eq!(error("model = 1"), "`model` must be a table, not a whole number");
    assert_eq!(error("[data]\ntokenizer = \"word\""), "`data.tokenizer` must be \"char\" or \"bpe\", not \"word\"");
    assert_eq!(
        error("[train]\nprecision = \"f64\""),
        "`train.precision` must be \"f32\", \"tf32\", \"bf16\" or \"f16\", not \"f64\""
    );
    assert_eq!(error("[train]\noptimizer = \"sgd\""), "`train.optimizer` must be \"adamw\" or \"muon\", not \"sgd\"");
    assert_eq!(
        error("[train]\nschedule = \"step\""),
        "`train.schedule` must be \"cosine\", \"linear\" or \"wsd\", not \"step\""
    );
    assert_eq!(
        error("[model]\nrope_scaling = \"yarn\""),
        "`model.rope_scaling` must be \"none\", \"linear\" or \"llama3\", not \"yarn\""
    );
    assert_eq!(error("[train]\nprior = \"l0\""), "`train.prior` must be \"none\", \"l2\" or \"l1\", not \"l0\"");
    assert!(error("[train]\nmax_steps = -5").contains("must not be negative"));
    assert!(error("[train\n").contains("not valid TOML"));
}

#[test]
fn a_value_out_of_range_is_refused_and_its_key_named() {
    for (text, key) in [
        ("format = 9", "format"),
        ("name = \"a/b\"", "name"),
        ("[data]\nval_fraction = 1.0", "data.val_fraction"),
        ("[data]\nval = \"-\"", "data.val"),
        ("[data]\ntokenizer = \"bpe\"\nvocab_size = 100", "data.vocab_size"),
        ("[model]\nn_embd = 130", "model.n_embd"),
        ("[model]\nhead_size = 5\nposition = \"rope\"", "model.head_size"),
        ("[model]\nnorm_eps = 1e-20", "model.norm_eps"),
        ("[model]\nrope_scaling = \"linear\"", "model.rope_scaling"),
        ("[model]\nrope_scaling = \"llama3\"\nposition = \"rope\"", "model.rope_original_block_size"),
        ("[model]\ndropout = 1.0", "model.dropout"),
        ("[train]\nmax_steps = 0", "train.max_steps"),
        ("[train]\nlr = nan", "train.lr"),
        ("[train]\nmin_lr = 1", "train.min_lr"),
        ("[train]\nbeta2 = 1", "train.beta2"),
        ("[train]\nlr_matrices = -1", "train.lr_matrices"),
        ("[train]\nlr_embeddings = inf", "train.lr_embeddings"),
        ("[train]\ndecay_fraction = 0", "train.decay_fraction"),
        ("[train]\ndecay_fraction = 1.5", "train.decay_fraction"),
        ("[train]\nmuon_momentum = 1", "train.muon_momentum"),
        ("[train]\nmuon_steps = 0", "train.muon_steps"),
        ("[train]\nmuon_steps = 6", "train.muon_steps"),
        ("[train]\nprior_weight = -1", "train.prior_weight"),
        ("[train]\nprior_weight = 0.1", "train.prior_weight"),
        ("[train]\nprior = \"l2\"", "train.prior_weight"),
        ("[train]\nkl_weight = -1\nreference = \"a\"", "train.kl_weight"),
        ("[train]\nkl_weight = 0.5", "train.kl_weight"),
        ("[train]\nsample_tokens = 0", "train.sample_tokens"),
        ("[generate]\ntop_p = 1.5", "generate.top_p"),
        ("[generate]\ntemperature = -1", "generate.temperature"),
    ] {
        let message = error(text);
        assert!(message.starts_with(&format!("`{key}` = ")), "{text}: {message}");
    }
}

#[test]
fn overrides_win_and_need_no_quotes() {
    let set =
        |items: &[&str]| load("[train]\nlr = 0.5", &items.iter().map(|s| s.to_string()).collect::<Vec<_>>(), false);
    let config = set(&["train.lr=1", "name=abc", "train.max_steps=7", "data.corpus=a b.txt"]).unwrap();
    assert_eq!((config.train.lr, config.name.as_str(), config.train.max_steps), (1.0, "abc", 7));
    assert_eq!(config.data.corpus, "a b.txt");
    assert_eq!(config.train.decay_end(), 100, "the decay follows max_steps but never ends before the warm-up");
    assert_eq!(config.train.decay_steps, 0, "what was derived is derived again when max_steps changes");
    assert!(matches!(set(&["train.lr"]), Err(ConfigError::Override(_))));
}

#[test]
fn what_an_override_breaks_names_the_override_and_what_the_text_breaks_does_not() {
    let message = |text: &str, items: &[&str]| {
        let items: Vec<_> = items.iter().map(|item| item.to_string()).collect();
        load(text, &items, false).unwrap_err().to_string()
    };
    let heads = "`model.n_embd` = 128: must be a multiple of n_head = 5";
    assert_eq!(message("", &["seed=3", "model.n_head=5", "name=a"]), format!("--set model.n_head=5: {heads}"));
    assert_eq!(message("[model]\nn_head = 5", &["seed=3"]), heads);
    // The first is made good by the second, and the third breaks something else.
    let items = ["model.n_head=5", "model.n_embd=10", "train.lr=-1"];
    assert_eq!(message("", &items), "--set train.lr=-1: `train.lr` = -1: must be larger than 0");
    assert_eq!(message("", &["train.lr"]), "`--set train.lr` is not KEY=VALUE; for example --set train.max_steps=100");
}

/// What the first version of format 1 wrote.
const FIRST_TRAIN_TOML: &str = r#"format = 1
name = "tiny"
seed = 1337

[data]
corpus = "stories"
stories_bytes = 2000000
tokenizer = "char"
vocab_size = 1024
val_fraction = 0.1

[model]
block_size = 64
n_layer = 4
n_head = 4
n_embd = 128
dropout = 0.0
bias = false
activation = "gelu"

[train]
batch_size = 12
grad_accum = 1
max_steps = 2000
max_minutes = 0.0
lr = 0.001
min_lr = 0.0001
warmup_steps = 100
decay_steps = 2000
beta1 = 0.9
beta2 = 0.99
eps = 1e-8
weight_decay = 0.1
clip = 1.0
eval_every = 250
eval_batches = 20
patience = 0
log_every = 10

[generate]
temperature = 0.8
top_k = 0
top_p = 1.0
max_new_tokens = 300
"#;

/// The text without the line of a dotted key.
fn without(text: &str, key: &str) -> String {
    let (section, name) = key.split_once('.').unwrap_or(("", key));
    let mut here = "";
    let mut kept = String::new();
    for line in text.split_inclusive('\n') {
        here = line.trim_end().strip_prefix('[').and_then(|line| line.strip_suffix(']')).unwrap_or(here);
        if here != section || !line.starts_with(&format!("{name} = ")) {
            kept += line;
        }
    }
    assert_ne!(kept, text, "{key}");
    kept
}

#[test]
fn the_configuration_of_a_run_must_have_every_key() {
    let whole = load("", &[], false).unwrap().to_toml().unwrap();
    assert!(load_resolved(&whole).is_ok());
    // Where the newest key is alone with its number, a file without it is one of before.
    let newest = later_keys().map(|(_, since)| since).max();
    let of_newest: Vec<_> = later_keys().filter(|(_, since)| Some(*since) == newest).map(|(key, _)| key).collect();
    let is_of_before = |key: &str| of_newest == [key];
    for key in fields().map(|field| field.key).filter(|key| !is_of_before(key)) {
        assert_eq!(load_resolved(&without(&whole, key)), Err(ConfigError::Incomplete(key.into())));
    }
    let in_generate = whole.find("top_p").unwrap();
    for (text, missing) in [("", "format"), ("format = 1", "name"), (&whole[..in_generate], "generate.top_p")] {
        assert_eq!(load_resolved(text), Err(ConfigError::Incomplete(missing.into())));
    }
}

#[test]
fn the_configuration_of_an_older_run_may_lack_the_keys_that_came_later_and_no_others() {
    let config = load_resolved(FIRST_TRAIN_TOML).unwrap();
    // It was written with what its decay_steps = 0 stood for.
    let mut today = load("", &[], false).unwrap();
    today.train.decay_steps = 2000;
    assert_eq!(RunConfig { name: "run".into(), ..config }, today);
    assert_eq!(load_resolved(&without(FIRST_TRAIN_TOML, "train.lr")), Err(ConfigError::Incomplete("train.lr".into())));
}

#[test]
fn every_recipe_is_found_by_its_name_and_its_file_and_can_be_loaded() {
    for (name, text) in RECIPES {
        assert_eq!(load(text, &[], false).unwrap().name, *name);
        for other in [name.to_string(), format!("{name}.toml"), format!("configs/{name}.toml")] {
            assert_eq!(recipe(&other), Some(*text));
        }
    }
    assert_eq!(recipe("none"), None);
}

#[test]
fn a_resumed_run_takes_what_may_change_and_refuses_what_would_make_it_another_run() {
    for item in ["train.max_steps=9000", "train.lr=1.0", "train.batch_size=3", "model.dropout=0.1"] {
        assert!(load("", &[item.into()], true).is_ok(), "{item}");
    }
    for item in ["train.beta1=0.5", "train.precision=bf16", "train.optimizer=muon", "model.n_layer=1"] {
        let error = load("", &[item.into()], true).unwrap_err().to_string();
        assert!(error.contains("cannot change when a run is resumed"), "{error}");
    }
}

#[test]
fn the_file_of_a_run_of_today_goes_on_being_read_when_a_key_is_added() {
    let today = |key: &str| key != "model.qk_norm";
    let later: Vec<_> = later_keys().collect();
    let newest = later.iter().map(|(_, since)| *since).max().unwrap();
    // As if `qk_norm` came next, wherever it stands: files of today lack it, and are whole.
    let renumbered = |since| -> Vec<_> {
        later.iter().map(|&(key, old)| (key, if key == "model.qk_norm" { since } else { old })).collect()
    };
    assert_eq!(missing_key(&renumbered(newest + 1), today), None);
    // One of the newest revision that lacks it was cut.
    assert_eq!(missing_key(&renumbered(newest), today), Some("model.qk_norm"));
}
