//! The configurations of `configs/`, which the top of the workspace links to, compiled into the program.

/// The name and the text of every recipe.
pub const RECIPES: &[(&str, &str)] = &[
    ("tiny", include_str!("../../configs/tiny.toml")),
    ("shakespeare-small-fast", include_str!("../../configs/shakespeare-small-fast.toml")),
    ("shakespeare-fast", include_str!("../../configs/shakespeare-fast.toml")),
    ("shakespeare-fast-5min", include_str!("../../configs/shakespeare-fast-5min.toml")),
    ("shakespeare-fast-10min", include_str!("../../configs/shakespeare-fast-10min.toml")),
    ("shakespeare-baby-fast", include_str!("../../configs/shakespeare-baby-fast.toml")),
    ("shakespeare-small", include_str!("../../configs/shakespeare-small.toml")),
    ("shakespeare-baby", include_str!("../../configs/shakespeare-baby.toml")),
    ("finetune-gpt2", include_str!("../../configs/finetune-gpt2.toml")),
];

/// The text of a recipe, called `tiny`, `tiny.toml` or `configs/tiny.toml`.
pub fn recipe(name: &str) -> Option<&'static str> {
    let name = name.strip_prefix("configs/").unwrap_or(name);
    let name = name.strip_suffix(".toml").unwrap_or(name);
    RECIPES.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}
