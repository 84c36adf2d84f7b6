//! Texts side by side on the CPU.

use super::{
    DecodeFormats, Place,
    forward::{Forward, PromptPass},
};
use crate::{
    ContextPolicy, GptConfig, Network, Result,
    batch_decode::{BatchDecoder, NextLogits, SlotState, expect_appended},
    checkpoint::ParamValues,
    decode::crop_prompt,
    network,
};

/// The multiply-adds of a part of prompt work, about a millisecond. A part has whole operations, one at least: of a large
/// network one of the longest prompt takes about as long as a step, which reads all weights from memory.
const PART_MULTIPLY_ADDS: f64 = (1 << 24) as f64;

/// The [`BatchDecoder`] on the CPU: the texts of a step go through the network as the rows of one pass, which reads every weight
/// once. In [`WeightFormat::F32`](super::WeightFormat::F32) it borrows the weights instead of copying them.
#[derive(Debug)]
pub struct CpuBatchDecoder<'a> {
    forward: Forward<'a>,
    policy: ContextPolicy,
    slots: Vec<Slot>,
    /// The prompt that is being computed.
    prompt: Option<PromptPass>,
    /// The tokens and places of a step.
    tokens: Vec<u32>,
    places: Vec<Place>,
    /// `(slots, V)`.
    logits: Vec<f32>,
    /// The logits behind the prompt that was computed last, `(V)`.
    prompt_logits: Vec<f32>,
    /// That prompt, as long as there are caches of it.
    computed: Option<ComputedPrompt>,
}

/// A prompt whose caches and logits the next texts with the same one take: samples of one prompt, as `n` of OpenAI's API asks
/// for.
#[derive(Debug)]
struct ComputedPrompt {
    /// The slot whose caches begin with it. Its text goes on behind the prompt, and may have ended: caches stay until the next
    /// prompt is computed there.
    slot: usize,
    tokens: Vec<u32>,
}

/// A text of a batch.
#[derive(Debug, Default)]
struct Slot {
    state: SlotState,
    /// The tokens of its context.
    tokens: Vec<u32>,
}

impl<'a> CpuBatchDecoder<'a> {
    /// Creates a decoder of the model with these parameter values (in parameter order). The caches of all slots are zeros, which
    /// take memory when they are first written.
    ///
    /// # Errors
    /// When the configuration is invalid or the values do not match it.
    pub fn new(
        config: &GptConfig,
        params: &[&'a [f32]],
        policy: ContextPolicy,
        formats: impl Into<DecodeFormats>,
        slots: usize,
    ) -> Result<Self> {
        config.validate()?;
        Self::over(network(config), params, policy, formats, slots)
    }

    /// [`CpuBatchDecoder::new`] of values that may lie in a file in another way.
    ///
    /// # Errors
    /// As [`CpuBatchDecoder::new`].
    pub(crate) fn of_values(
        config: &GptConfig,
        params: Vec<ParamValues<'a>>,
        policy: ContextPolicy,
        formats: DecodeFormats,
        slots: usize,
    ) -> Result<Self> {
        config.validate()?;
        Self::over_values(network(config), params, policy, formats, slots)
    }

    /// [`CpuBatchDecoder::new`] of any network.
    ///
    /// # Errors
    /// When the values do not match it.
    #[doc(hidden)]
    pub fn over(
        net: Network,
        params: &[&'a [f32]],
        policy: ContextPolicy,
        formats: impl Into<DecodeFormats>,
        slots: usize,
    ) -> Result<Self> {
        Self::over_values(net, params.iter().map(|&values| values.into()).collect(), policy, formats.into(), slots)
    }

    fn over_values(
        net: Network,
        params: Vec<ParamValues<'a>>,
        policy: ContextPolicy,
        formats: DecodeFormats,
        slots: usize,
    ) -> Result<Self> {
        let v = net.config().vocab_size;
        let mut forward = Forward::new(net, &params, formats)?;
        forward.set_slots(slots);
        Ok(Self {
            forward,
            policy,
            slots: (0..slots).map(|_| Slot::default()).collect(),
            prompt: None,
            tokens: Vec::with_capacity(slots),
            places: Vec::with_capacity(slots),
            logits: vec![0.0; slots * v],
            prompt_logits: vec![0.0; v],
            computed: None,
        })
    }

    fn state(&self, slot: usize) -> Option<SlotState> {
        self.slots.get(slot).map(|slot| slot.state)
    }
}

impl BatchDecoder for CpuBatchDecoder<'_> {
    fn vocab_size(&self) -> usize {
        self.forward.config().vocab_size
    }

    fn slots(&self) -> usize {
        self.slots.len()
    }

    fn begin(&mut self, slot: usize, prompt: &[u32]) -> Result<()> {
        SlotState::expect(self.state(slot), slot, SlotState::Free)?;
        let context = crop_prompt(self.forward.config(), prompt, 1)?;
        let slot = &mut self.slots[slot];
        slot.state = SlotState::Prompt;
        slot.tokens.clear();
        slot.tokens.extend_from_slice(context);
        Ok(())
    }

    fn prompt_part(&mut self, slot: usize) -> Result<Option<&[f32]>> {
        SlotState::expect(self.state(slot), slot, SlotState::Prompt)?;
        let Self { forward, slots, prompt, prompt_logits, computed, .. } = self;
        let Slot { state, tokens } = &mut slots[slot];
        if let Some(known) = computed.as_ref().filter(|known| known.tokens == *tokens) {
            forward.copy_slot(known.slot, slot, tokens.len());
            *prompt = prompt.filter(|pass| pass.slot() != slot);
            *state = SlotState::Told;
            return Ok(Some(prompt_logits));
        }
        // From here on the slot's caches are written.
        computed.take_if(|known| known.slot == slot);
        let mut pass = prompt.take().filter(|pass| pass.slot() == slot).unwrap_or_else(|| PromptPass::new(slot));
        if forward.prompt_part((&mut pass, tokens), PART_MULTIPLY_ADDS, prompt_logits) {
            *state = SlotState::Told;
            *computed = Some(ComputedPrompt { slot, tokens: tokens.clone() });
            return Ok(Some(prompt_logits));
        }
        *prompt = Some(pass);
        Ok(None)
    }

    fn append(&mut self, slot: usize, token: u32) -> Result<NextLogits> {
        SlotState::expect(self.state(slot), slot, SlotState::Told)?;
        self.forward.config().check_tokens(&[token])?;
        let block_size = self.forward.config().block_size;
        let slot = &mut self.slots[slot];
        slot.tokens.push(token);
        if slot.tokens.len() <= block_size {
            slot.state = SlotState::Appended;
            return Ok(NextLogits::Step);
        }
        let dropped = slot.tokens.len() - self.policy.kept(block_size);
        slot.tokens.drain(..dropped);
        slot.state = SlotState::Prompt;
        Ok(NextLogits::Prompt)
    }

    fn step(&mut self, slots: &[usize]) -> Result<&[f32]> {
        expect_appended(slots, |slot| self.state(slot))?;
        if slots.is_empty() {
            return Ok(&[]);
        }
        self.tokens.clear();
        self.places.clear();
        for &slot in slots {
            let Slot { state, tokens } = &mut self.slots[slot];
            *state = SlotState::Told;
            // The caches have all tokens but the last.
            self.tokens.extend(tokens.last());
            self.places.push(Place { slot, at: tokens.len() - 1 });
        }
        let logits = &mut self.logits[..slots.len() * self.forward.config().vocab_size];
        self.forward.step(&self.tokens, &self.places, logits);
        Ok(logits)
    }

    fn release(&mut self, slot: usize) {
        if let Some(freed) = self.slots.get_mut(slot) {
            freed.state = SlotState::Free;
            self.prompt = self.prompt.filter(|pass| pass.slot() != slot);
        }
    }
}
