//! `POST /api/next`: the distribution of the token after a prompt, rule by rule, and the draw from it.

use std::{collections::HashMap, sync::Arc};

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};
use tinygpt_model::language_model::NextToken;
use tinygpt_sampler::{
    Row, Sampler, SamplingError, SamplingParams, entropy,
    oracle::{DrawNumbers, ExplainedToken, Explanation, explain},
};

use super::{Served, compute, prompt_tokens, token_json, tokens_json};
use crate::commands::serve::{
    engine::Engine,
    http::{
        error::ApiError,
        fields::Fields,
        logprobs::PromptLogits,
        rules::{OfModel, Rules},
        texts::RequestTime,
    },
};

/// How many tokens are told one by one where nobody says, and at most.
pub const LIMIT: usize = 40;
pub const MAX_LIMIT: usize = 2000;
/// How many draws are counted where nobody says, and at most.
pub const DRAWS: usize = 1000;
pub const MAX_DRAWS: usize = 10_000;

/// What is asked for.
struct Request {
    engine: Engine,
    params: SamplingParams,
    prompt: Vec<u32>,
    /// The number of the text that the draw is of, and the first of those that are counted.
    sample: u64,
    limit: usize,
    draws: usize,
}

/// The distribution that the token after a prompt is drawn from.
pub async fn next(State(served): State<Arc<Served>>, time: RequestTime, fields: Fields) -> Result<Response, ApiError> {
    let request = compute(&served, time, |served| Request::take(served, fields)).await?;
    let logits = PromptLogits::new(&request.engine, time.deadline).after(&request.prompt).await?;
    compute(&served, time, move |_| Ok(Json(request.answer(&logits)?).into_response())).await
}

impl Request {
    fn take(served: &Served, mut fields: Fields) -> Result<Self, ApiError> {
        let engine = served.engine(fields.take::<String>("model")?.as_deref())?.clone();
        let prompt: String = fields.take("prompt")?.unwrap_or_default();
        let sample = fields.take("sample")?.unwrap_or(0);
        let limit = fields.whole("limit", 0..=MAX_LIMIT)?.unwrap_or(LIMIT);
        let draws = fields.whole("draws", 0..=MAX_DRAWS)?.unwrap_or(DRAWS);
        let model = engine.generator();
        let defaults = model.defaults();
        let of_model = OfModel { defaults: &defaults, tokenizer: engine.tokenizer(), vocab_size: model.vocab_size() };
        let Rules { params, adaptive } = Rules::take(&mut fields, of_model)?;
        if adaptive.is_some() {
            return Err(ApiError::bad_param("adaptive", "is no rule of one distribution that could be shown"));
        }
        fields.finish()?;
        let prompt = prompt_tokens(&engine, &prompt)?;
        Ok(Self { engine, params, prompt, sample, limit, draws })
    }

    /// What the rules make of the logits of the next token, `[V]`.
    fn answer(&self, logits: &[f32]) -> Result<Value, ApiError> {
        let Self { params, prompt, sample, draws, .. } = self;
        let tokenizer = self.engine.tokenizer();
        let cannot_draw = |error: SamplingError| ApiError::bad_request(error.to_string());
        let position = prompt.len() as u64;
        let numbers = DrawNumbers::at(params, *sample, position);
        let explanation = explain(logits, params, prompt, numbers).map_err(cannot_draw)?;
        let row = Row { logits, history: prompt, sequence: *sample, position };
        let mut sampler = Sampler::new(params.clone()).map_err(cannot_draw)?;
        let drawn = sampler.sample_row_in_sequences(&row, *draws).map_err(cannot_draw)?;
        let table = Table::new(logits, &explanation, &drawn);
        let shown = &explanation.tokens[..self.limit.min(explanation.tokens.len())];
        let mut draw = token_json(tokenizer, explanation.outcome.token)?;
        let (from, to) = explanation.interval;
        draw["uniform"] = numbers.u.into();
        draw["from"] = from.into();
        draw["to"] = to.into();
        let listed = |token| {
            let mut listed = token_json(tokenizer, token)?;
            table.tell(&mut listed, token);
            Ok(listed)
        };
        Ok(json!({
            "prompt": tokens_json(tokenizer, prompt)?,
            "position": position,
            "vocab_size": logits.len(),
            "entropy_before": table.model.entropy,
            "entropy_after": entropy(&explanation.outcome.probs),
            "kept": explanation.outcome.kept.len(),
            "kept_mass": explanation.kept_mass(),
            "tokens": shown.iter().map(|entry| listed(entry.token)).collect::<Result<Vec<_>, ApiError>>()?,
            "rest": table.rest(shown),
            "argmax": token_json(tokenizer, explanation.tokens[0].token)?,
            "draw": draw,
            "draws": draws,
        }))
    }
}

/// The figures of each token.
struct Table<'a> {
    logits: &'a [f32],
    /// The model's own distribution.
    model: NextToken,
    explained: HashMap<u32, &'a ExplainedToken>,
    counts: HashMap<u32, usize>,
    draws: usize,
}

impl<'a> Table<'a> {
    fn new(logits: &'a [f32], explanation: &'a Explanation, drawn: &[u32]) -> Self {
        let mut counts = HashMap::new();
        for &token in drawn {
            *counts.entry(token).or_default() += 1;
        }
        let explained = explanation.tokens.iter().map(|entry| (entry.token, entry)).collect();
        Self { logits, model: NextToken::of(logits), explained, counts, draws: drawn.len() }
    }

    /// The probability of a token at temperature 1, before any rule.
    fn prob(&self, token: u32) -> f64 {
        self.model.logprob(self.logits[token as usize]).exp()
    }

    fn count(&self, token: u32) -> usize {
        self.counts.get(&token).copied().unwrap_or(0)
    }

    /// Adds the figures of a token.
    fn tell(&self, listed: &mut Value, token: u32) {
        let entry = self.explained[&token];
        listed["logit"] = self.logits[token as usize].into();
        listed["p"] = self.prob(token).into();
        listed["p_tempered"] = entry.tempered.into();
        listed["p_kept"] = entry.prob.into();
        listed["cut_by"] = json!(entry.cut_by);
        listed["count"] = self.count(token).into();
    }

    /// All tokens together that are not among those.
    fn rest(&self, shown: &[ExplainedToken]) -> Value {
        let sum = |of: &dyn Fn(&ExplainedToken) -> f64| shown.iter().map(of).sum::<f64>();
        // Rounding may leave sums of all tokens a little above 1.
        let rest = |shown: f64| (1.0 - shown).max(0.0);
        json!({
            "tokens": self.logits.len() - shown.len(),
            "p": rest(sum(&|entry| self.prob(entry.token))),
            "p_kept": rest(sum(&|entry| entry.prob)),
            "count": self.draws - shown.iter().map(|entry| self.count(entry.token)).sum::<usize>(),
        })
    }
}
