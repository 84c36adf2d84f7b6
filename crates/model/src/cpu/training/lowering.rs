//! From a network to what CPU training runs: its operations, some of them fused, and where values and gradients are
//! stored.

use std::sync::Arc;

use super::{SlotSpec, TrainOp, TrainSetup};
use crate::{
    cpu::operand::Storage,
    ops::{Op, ResidualLinear},
    plan::{Network, ParamId, Value},
};

/// A step of the forward pass, by the places of its operations in the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StepKind {
    /// One operation.
    Single(usize),
    /// A linear layer whose output, dropped or not, is added to the residual stream.
    Residual { linear: usize, drop: Option<usize>, add: usize },
}

/// A matrix with the operands of its gradient, `x^T dy`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MatrixGrad {
    pub(crate) weight: ParamId,
    /// The input of its product, and the product, whose gradient is the other operand.
    pub(crate) x: Value,
    pub(crate) y: Value,
}

/// What all sequences of a network have in common.
#[derive(Debug)]
pub(crate) struct Lowered {
    steps: Vec<StepKind>,
    /// The output of each step, where that is complete then and is to be quantized.
    pub(crate) quantized: Vec<Option<Value>>,
    /// The input of each step to whose gradient it is the first to add: zeros, to begin with.
    pub(crate) clears: Vec<Option<Value>>,
    pub(crate) values: Vec<SlotSpec>,
    pub(crate) value_slots: Arc<[usize]>,
    pub(crate) grads: Vec<SlotSpec>,
    pub(crate) grad_slots: Arc<[usize]>,
    /// In parameter order.
    pub(crate) matrices: Vec<MatrixGrad>,
    /// What the network begins with: its gradient is that of the embeddings.
    pub(crate) stream: Value,
}

/// A value that is stored nowhere.
const NOWHERE: usize = usize::MAX;

impl Lowered {
    pub(crate) fn new(net: &Network) -> Self {
        let steps = fuse(net);
        let (values, value_slots) = value_slots(net, &steps);
        let (grads, mut grad_slots) = grad_slots(net);
        let quantized = steps.iter().enumerate().map(|(at, step)| {
            let output = step.output(net);
            let slot = value_slots[output.0];
            let later = steps[at + 1..].iter().any(|step| value_slots[step.output(net).0] == slot);
            (values[slot].storage.multiplied && !later).then_some(output)
        });
        let clears = clears(net, &steps, &grad_slots);
        let grads = share(net, &steps, &mut grad_slots, grads);
        let matrix = |op: &Op| match op {
            Op::Linear(linear) => Some(MatrixGrad { weight: linear.weight, x: linear.x, y: linear.y }),
            _ => None,
        };
        let mut matrices: Vec<MatrixGrad> = net.ops.iter().filter_map(matrix).collect();
        matrices.sort_by_key(|grad| grad.weight.0);
        Self {
            quantized: quantized.collect(),
            clears,
            matrices,
            stream: net.ops[0].get().output(),
            steps,
            values,
            value_slots: value_slots.into(),
            grads,
            grad_slots: grad_slots.into(),
        }
    }

    /// The steps with what they keep of one sequence.
    pub(crate) fn tapes(&self, setup: &TrainSetup<'_>) -> Vec<Box<dyn TrainOp>> {
        let ops = &setup.net.ops;
        let tape = |step: &StepKind| -> Box<dyn TrainOp> {
            if let StepKind::Residual { linear, drop, add } = *step
                && let (Op::Linear(linear), Op::Add(add)) = (&ops[linear], &ops[add])
            {
                let drop = drop.and_then(|drop| if let Op::Drop(drop) = &ops[drop] { Some(drop) } else { None });
                return Box::new(ResidualLinear::new(linear, drop, add, setup));
            }
            ops[step.first()].get().training(setup)
        };
        self.steps.iter().map(tape).collect()
    }
}

impl StepKind {
    fn first(self) -> usize {
        match self {
            Self::Single(op) => op,
            Self::Residual { linear, .. } => linear,
        }
    }

    /// The values that it reads from their buffers; first the one whose gradient the backward pass writes first.
    fn inputs(self, net: &Network) -> Vec<Value> {
        let inputs = |op: usize| net.ops[op].get().inputs();
        match self {
            Self::Single(op) => inputs(op),
            Self::Residual { linear, add, .. } => [inputs(linear)[0], inputs(add)[0]].into(),
        }
    }

    fn output(self, net: &Network) -> Value {
        match self {
            Self::Single(op) => net.ops[op].get().output(),
            Self::Residual { add, .. } => net.ops[add].get().output(),
        }
    }
}

/// The steps of a network: linear layers that end in the residual stream are fused with what follows them.
fn fuse(net: &Network) -> Vec<StepKind> {
    let mut steps = Vec::new();
    let mut at = 0;
    while at < net.ops.len() {
        let step = match net.ops[at..] {
            [Op::Linear(ref linear), Op::Add(ref add), ..] if add.y == linear.y => {
                StepKind::Residual { linear: at, drop: None, add: at + 1 }
            }
            [Op::Linear(ref linear), Op::Drop(ref drop), Op::Add(ref add), ..]
                if drop.x == linear.y && add.y == drop.y =>
            {
                StepKind::Residual { linear: at, drop: Some(at + 1), add: at + 2 }
            }
            _ => StepKind::Single(at),
        };
        at += match step {
            StepKind::Single(_) => 1,
            StepKind::Residual { drop, .. } => 2 + usize::from(drop.is_some()),
        };
        steps.push(step);
    }
    steps
}

/// A buffer for each value, but that operations in place write over their input.
fn value_slots(net: &Network, steps: &[StepKind]) -> (Vec<SlotSpec>, Vec<usize>) {
    let mut of = vec![NOWHERE; net.cols.len()];
    let mut slots: Vec<SlotSpec> = Vec::new();
    for step in steps {
        let output = step.output(net);
        of[output.0] = match *step {
            StepKind::Single(op) if net.ops[op].get().in_place() => of[step.inputs(net)[0].0],
            _ => {
                slots.push(SlotSpec { cols: net.cols(output), storage: Storage { multiplied: false, kept: false } });
                slots.len() - 1
            }
        };
    }
    for step in steps {
        for (i, input) in step.inputs(net).into_iter().enumerate() {
            let storage = &mut slots[of[input.0]].storage;
            let op = &net.ops[step.first()];
            if matches!(op, Op::Linear(_)) && i == 0 {
                storage.multiplied = true;
            } else if !op.get().in_place() {
                storage.kept = true;
            }
        }
        for kept in net.ops[step.first()].get().kept() {
            slots[of[kept.0]].storage.kept = true;
        }
    }
    slots[of[net.head.x.0]].storage.multiplied = true;
    (slots, of)
}

/// The input of each step to whose gradient it is the first to add.
fn clears(net: &Network, steps: &[StepKind], grad_slots: &[usize]) -> Vec<Option<Value>> {
    let of_step = |(at, step): (usize, &StepKind)| {
        let (op, input) = (net.ops[step.first()].get(), *step.inputs(net).first()?);
        let slot = grad_slots[input.0];
        let reads = |step: &StepKind| step.inputs(net).iter().any(|x| grad_slots[x.0] == slot);
        let written = steps[at + 1..].iter().any(reads) || slot == grad_slots[net.head.x.0];
        // What a norm's backward pass finds it adds to; all others write, and so must be the only ones to do it.
        let alone = op.in_place() || matches!(op_of(net, *step), Op::Add(_)) || !written;
        assert!(op.adds_to_input_grad() || alone, "{op:?}: only norms may read what others read too");
        (op.adds_to_input_grad() && !written).then_some(input)
    };
    steps.iter().enumerate().map(of_step).collect()
}

fn op_of(net: &Network, step: StepKind) -> &Op {
    &net.ops[step.first()]
}

/// A buffer for each gradient, but that the gradients of what is added to the residual stream leave that of the stream as
/// it is: all of them share one, as do those of inputs and outputs of operations in place.
fn grad_slots(net: &Network) -> (Vec<SlotSpec>, Vec<usize>) {
    let rows = Storage { multiplied: false, kept: true };
    let mut of = vec![NOWHERE; net.cols.len()];
    let mut slots: Vec<SlotSpec> = Vec::new();
    for op in &net.ops {
        let (inputs, output) = (op.get().inputs(), op.get().output());
        of[output.0] = match op {
            Op::Add(_) => of[inputs[0].0],
            _ if op.get().in_place() => of[inputs[0].0],
            _ => {
                let multiplied = matches!(op, Op::Linear(_));
                let storage = if multiplied { Storage { multiplied, kept: false } } else { rows };
                slots.push(SlotSpec { cols: net.cols(output), storage });
                slots.len() - 1
            }
        };
    }
    // The head writes, and what is added is copied from, whole rows.
    slots[of[net.head.x.0]].storage.kept = true;
    (slots, of)
}

/// Lets gradients of which no two are alive at a time share a buffer: they are of no use once the operation that made the
/// value has gone back. Operands of the gradients of weights stay.
fn share(net: &Network, steps: &[StepKind], of: &mut [usize], slots: Vec<SlotSpec>) -> Vec<SlotSpec> {
    // The step that makes the value, where its gradient's life ends, and the last that reads it, where it begins.
    let mut life = vec![(NOWHERE, 0); slots.len()];
    for (at, step) in steps.iter().enumerate() {
        let output = of[step.output(net).0];
        life[output].0 = life[output].0.min(at);
        for input in step.inputs(net) {
            let slot = of[input.0];
            life[slot].1 = life[slot].1.max(at);
        }
    }
    life[of[net.head.x.0]].1 = steps.len();
    let (mut shared, mut place): (Vec<(SlotSpec, usize)>, Vec<usize>) = (Vec::new(), Vec::new());
    // In the order of the backward pass, so that a buffer is free again once its last user has ended.
    let mut order: Vec<usize> = (0..slots.len()).collect();
    order.sort_by_key(|&slot| std::cmp::Reverse(life[slot].1));
    place.resize(slots.len(), NOWHERE);
    for slot in order {
        let (spec, (first, last)) = (slots[slot], life[slot]);
        let free = shared.iter().position(|&(other, busy_until)| {
            !spec.storage.multiplied && !other.storage.multiplied && other.cols == spec.cols && busy_until > last
        });
        place[slot] = match free {
            Some(at) => {
                shared[at].1 = first;
                at
            }
            None => {
                shared.push((spec, first));
                shared.len() - 1
            }
        };
    }
    of.iter_mut().filter(|slot| **slot != NOWHERE).for_each(|slot| *slot = place[*slot]);
    shared.into_iter().map(|(spec, _)| spec).collect()
}
