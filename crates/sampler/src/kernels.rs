//! Launches of the project's own CUDA kernels, which all crates share, and of products into tensors that are there.
//!
//! A kernel is CUDA C++ in `crates/*/kernels/*.cu`. `scripts/cuda/kernels.sh` compiles it to PTX, which is committed beside it
//! and becomes part of the program, so that building needs no CUDA. Each kernel stands beside tensor operations that compute
//! the same; those run where [`Kernels::of`] gives nothing: on the CPU, on Metal, on cards before compute capability 8.0, and
//! everywhere with `TINYGPT_KERNELS=off`. A device whose events are on, which may have several streams, gives nothing either.

use std::cell::Cell;

use candle_core::{DType, Device, Result, Shape, Tensor};

/// A source file of kernels, compiled.
#[derive(Debug, Clone, Copy)]
pub struct Module {
    /// The file's name without its ending.
    pub name: &'static str,
    /// The PTX.
    pub ptx: &'static str,
}

/// The blocks and threads of a launch.
#[derive(Debug, Clone, Copy)]
pub struct Grid {
    /// Blocks in x, y and z.
    pub blocks: (u32, u32, u32),
    /// The threads of a block, in x.
    pub threads: u32,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
}

impl Grid {
    /// `blocks` blocks of `threads` threads, without dynamic shared memory.
    pub fn new(blocks: usize, threads: u32) -> Self {
        Self { blocks: (blocks as u32, 1, 1), threads, shared: 0 }
    }

    /// Enough blocks of `threads` threads for `n` elements, one each.
    pub fn over(n: usize, threads: u32) -> Self {
        Self::new(n.div_ceil(threads as usize), threads)
    }
}

/// An argument of a kernel.
#[derive(Debug, Clone, Copy)]
pub enum Arg<'a> {
    /// The address of the first element of a contiguous tensor, which the kernel reads, writes, or both.
    Tensor(&'a Tensor),
    /// A null pointer, in the place of a tensor that is not there.
    Null,
    /// `unsigned`.
    U32(u32),
    /// `unsigned long long`.
    U64(u64),
    /// `float`.
    F32(f32),
}

impl<'a> Arg<'a> {
    /// The address of a tensor, null without one.
    pub fn optional(tensor: Option<&'a Tensor>) -> Self {
        tensor.map_or(Self::Null, Self::Tensor)
    }
}

thread_local! {
    static OFF: Cell<bool> = const { Cell::new(false) };
}

/// Runs `f` with this thread's kernels off, so that tensor operations compute in their place: what each kernel is compared with.
pub fn without_kernels<T>(f: impl FnOnce() -> T) -> T {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            OFF.set(self.0);
        }
    }
    let _restore = Restore(OFF.replace(true));
    f()
}

#[cfg(feature = "cuda")]
pub use cuda::Kernels;
#[cfg(not(feature = "cuda"))]
pub use none::Kernels;

#[cfg(feature = "cuda")]
#[allow(unsafe_code)]
mod cuda {
    use std::{
        cell::RefCell,
        collections::HashMap,
        rc::Rc,
        sync::{LazyLock, Mutex, PoisonError},
    };

    use candle_core::{
        CudaDevice, Storage, bail,
        cuda_backend::{
            CudaStorageSlice, DeviceId, WrapErr,
            cudarc::cublas,
            cudarc::driver::{CudaFunction, CudaStream, DevicePtr, LaunchConfig, PushKernelArg, sys},
            gemm_reduced_precision_f32,
        },
    };

    use super::{Arg, DType, Device, Grid, Module, OFF, Result, Shape, Tensor};

    /// A device that runs the project's kernels.
    #[derive(Debug, Clone)]
    pub struct Kernels(CudaDevice);

    /// Whether kernels are wanted: not with `TINYGPT_KERNELS=off`.
    static WANTED: LazyLock<bool> = LazyLock::new(|| std::env::var_os("TINYGPT_KERNELS").is_none_or(|v| v != "off"));

    /// A device, a module and a kernel.
    type Key = (DeviceId, &'static str, &'static str);

    /// The bytes of dynamic shared memory that launches of a kernel may ask for, where they were raised.
    static SHARED_LIMITS: LazyLock<Mutex<HashMap<Key, u32>>> = LazyLock::new(Mutex::default);

    thread_local! {
        static FUNCTIONS: RefCell<HashMap<Key, Rc<CudaFunction>>> = RefCell::default();
        /// Whether a device runs the committed PTX.
        static CAPABLE: RefCell<HashMap<DeviceId, bool>> = RefCell::default();
    }

    /// The least compute capability, that of the committed PTX.
    const LEAST_CAPABILITY: (i32, i32) = (8, 0);

    impl Kernels {
        /// The kernels of a device, if it runs them and they are not off.
        pub fn of(device: &Device) -> Option<Self> {
            let Device::Cuda(cuda) = device else { return None };
            if OFF.get() || !*WANTED {
                return None;
            }
            // With events a kernel would have to record its writes; without them the device has one stream, whose order suffices.
            if cuda.is_event_tracking() {
                return None;
            }
            let ask = || cuda.cuda_stream().context().compute_capability().is_ok_and(|c| c >= LEAST_CAPABILITY);
            let capable = CAPABLE.with_borrow_mut(|known| *known.entry(cuda.id()).or_insert_with(ask));
            capable.then(|| Self(cuda.clone()))
        }

        /// A tensor whose elements a kernel has yet to write, all of them.
        ///
        /// # Errors
        /// When the device is out of memory.
        pub fn output(&self, shape: impl Into<Shape>, dtype: DType) -> Result<Tensor> {
            // SAFETY: the kernel that gets the tensor writes each element before anything reads one, which the emulated
            // device watches over.
            unsafe { Tensor::empty(shape, dtype, &Device::Cuda(self.0.clone())) }
        }

        /// Queues a kernel.
        ///
        /// The caller answers for the kernel: that it takes these arguments, and stays within its tensors.
        ///
        /// # Errors
        /// When a tensor is not contiguous or not on this device, or the driver refuses the launch.
        pub fn launch(&self, module: Module, name: &'static str, grid: Grid, args: &[Arg<'_>]) -> Result<()> {
            let stream = self.0.cuda_stream();
            let mut words = Vec::with_capacity(args.len());
            for arg in args {
                words.push(match arg {
                    Arg::Tensor(tensor) => Word::Wide(self.address(tensor).map_err(|error| error.context(name))?),
                    Arg::Null => Word::Wide(0),
                    Arg::U32(x) => Word::Narrow(*x),
                    Arg::U64(x) => Word::Wide(*x),
                    Arg::F32(x) => Word::Float(*x),
                });
            }
            let function = self.function(module, name, grid.shared)?;
            let mut builder = stream.launch_builder(&function);
            for word in &words {
                match word {
                    Word::Wide(x) => builder.arg(x),
                    Word::Narrow(x) => builder.arg(x),
                    Word::Float(x) => builder.arg(x),
                };
            }
            let config =
                LaunchConfig { grid_dim: grid.blocks, block_dim: (grid.threads, 1, 1), shared_mem_bytes: grid.shared };
            // SAFETY: the caller gives the arguments that the kernel's source declares; addresses are those of tensors that
            // live until their memory is freed on this same stream, behind the kernel.
            unsafe { builder.launch(config) }.w()?;
            Ok(())
        }

        /// The address of the first element of a contiguous tensor, for a table that a kernel reads. It holds as long as the
        /// tensor lives.
        ///
        /// # Errors
        /// When the tensor is not contiguous or not on a CUDA device.
        pub fn address(&self, tensor: &Tensor) -> Result<u64> {
            let (storage, layout) = tensor.storage_and_layout();
            match &*storage {
                Storage::Cuda(cuda) if layout.is_contiguous() => {
                    let offset = layout.start_offset() * tensor.dtype().size_in_bytes();
                    Ok(address(&cuda.slice, &self.0.cuda_stream())? + offset as u64)
                }
                _ => bail!("no address: a tensor {:?} is not contiguous on the device", layout.shape()),
            }
        }

        /// Queues the product `c (m, n) = a (m, k) b (k, n)` by cuBLAS, or with `adds` `c += a b`; sums are f32, or TF32's where candle's
        /// are. `a` and `b` are of one type, f32, bf16 or f16, and contiguous or the transposes of contiguous matrices; `c` is
        /// contiguous and of that type or of f32, which candle's own products of 16 bits are not.
        ///
        /// # Errors
        /// When the matrices are not like that or not on a CUDA device, or cuBLAS refuses the product.
        pub fn product(&self, a: &Tensor, b: &Tensor, c: &Tensor, adds: bool) -> Result<()> {
            use cublas::sys::{cublasComputeType_t as Compute, cublasGemmAlgo_t as Algorithm};

            let ((m, k), (b_rows, n)) = (a.dims2()?, b.dims2()?);
            let of_one_type = a.dtype() == b.dtype() && [a.dtype(), DType::F32].contains(&c.dtype());
            if b_rows != k || c.dims2()? != (m, n) || !of_one_type {
                bail!("no product of {:?} {:?} and {:?} {:?}", a.dtype(), a.shape(), b.dtype(), b.shape());
            }
            let (a_at, a_op, a_ld) = self.operand(a)?;
            let (b_at, b_op, b_ld) = self.operand(b)?;
            let c_at = self.address(c)?;
            let tf32 = a.dtype() == DType::F32 && gemm_reduced_precision_f32();
            let compute = if tf32 { Compute::CUBLAS_COMPUTE_32F_FAST_TF32 } else { Compute::CUBLAS_COMPUTE_32F };
            let (alpha, beta) = (1f32, f32::from(u8::from(adds)));
            let int = |n: usize| i32::try_from(n).map_err(candle_core::Error::wrap);
            // cuBLAS has the first index beside the second: what it gets is `c^T = b^T a^T`.
            //
            // SAFETY: the addresses are those of living tensors of this device with these extents and leading dimensions, as
            // checked above, whose memory is freed on this same stream, behind the product. alpha and beta are f32, as the sums are.
            unsafe {
                cublas::result::gemm_ex(
                    *self.0.cublas_handle().handle(),
                    b_op,
                    a_op,
                    int(n)?,
                    int(m)?,
                    int(k)?,
                    (&raw const alpha).cast(),
                    b_at as *const _,
                    data_type(b.dtype())?,
                    int(b_ld)?,
                    a_at as *const _,
                    data_type(a.dtype())?,
                    int(a_ld)?,
                    (&raw const beta).cast(),
                    c_at as *mut _,
                    data_type(c.dtype())?,
                    int(n.max(1))?,
                    compute,
                    Algorithm::CUBLAS_GEMM_DEFAULT_TENSOR_OP,
                )
            }
            .w()
        }

        /// The address of a matrix that is contiguous or the transpose of one that is, whether it is that, and the length of the rows
        /// that lie in memory.
        fn operand(&self, matrix: &Tensor) -> Result<(u64, cublas::sys::cublasOperation_t, usize)> {
            use cublas::sys::cublasOperation_t::{CUBLAS_OP_N, CUBLAS_OP_T};

            let (rows, cols) = matrix.dims2()?;
            if matrix.is_contiguous() {
                Ok((self.address(matrix)?, CUBLAS_OP_N, cols.max(1)))
            } else {
                Ok((self.address(&matrix.t()?)?, CUBLAS_OP_T, rows.max(1)))
            }
        }

        fn function(&self, module: Module, name: &'static str, shared: u32) -> Result<Rc<CudaFunction>> {
            let key = (self.0.id(), module.name, name);
            let known = FUNCTIONS.with_borrow(|known| known.get(&key).cloned());
            let function = match known {
                Some(function) => function,
                None => {
                    let function = self.0.get_or_load_custom_func(name, module.name, module.ptx)?.into_cuda_function();
                    let function = Rc::new(function);
                    FUNCTIONS.with_borrow_mut(|known| known.insert(key, Rc::clone(&function)));
                    function
                }
            };
            // The limit is the kernel's, whichever thread raised it. A launch that does not raise it gets 48 KiB less what the kernel
            // has of a fixed extent.
            let mut limits = SHARED_LIMITS.lock().unwrap_or_else(PoisonError::into_inner);
            let limit = limits.entry(key).or_insert(0);
            if shared > *limit {
                let most = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
                function.set_attribute(most, shared as i32).w()?;
                *limit = shared;
            }
            Ok(function)
        }
    }

    /// A type of numbers as cuBLAS calls it.
    fn data_type(dtype: DType) -> Result<cublas::sys::cudaDataType> {
        Ok(match dtype {
            DType::F32 => cublas::sys::cudaDataType::CUDA_R_32F,
            DType::BF16 => cublas::sys::cudaDataType::CUDA_R_16BF,
            DType::F16 => cublas::sys::cudaDataType::CUDA_R_16F,
            _ => bail!("no product of {dtype:?}"),
        })
    }

    /// An argument as the driver gets it.
    enum Word {
        Wide(u64),
        Narrow(u32),
        Float(f32),
    }

    fn address(slice: &CudaStorageSlice, stream: &CudaStream) -> Result<u64> {
        Ok(match slice {
            CudaStorageSlice::U8(s) => s.device_ptr(stream).0,
            CudaStorageSlice::U32(s) => s.device_ptr(stream).0,
            CudaStorageSlice::I64(s) => s.device_ptr(stream).0,
            CudaStorageSlice::BF16(s) => s.device_ptr(stream).0,
            CudaStorageSlice::F16(s) => s.device_ptr(stream).0,
            CudaStorageSlice::F32(s) => s.device_ptr(stream).0,
            CudaStorageSlice::F64(s) => s.device_ptr(stream).0,
            _ => bail!("no kernel takes tensors of this type"),
        })
    }
}

#[cfg(not(feature = "cuda"))]
mod none {
    use std::convert::Infallible;

    use super::{Arg, DType, Device, Grid, Module, Result, Shape, Tensor};

    /// A device that runs the project's kernels: there is none in a program without CUDA.
    #[derive(Debug, Clone)]
    pub struct Kernels(Infallible);

    impl Kernels {
        /// Nothing.
        pub fn of(_: &Device) -> Option<Self> {
            None
        }

        /// A tensor whose elements a kernel has yet to write.
        ///
        /// # Errors
        /// None: never called.
        pub fn output(&self, _: impl Into<Shape>, _: DType) -> Result<Tensor> {
            match self.0 {}
        }

        /// The address of a tensor.
        ///
        /// # Errors
        /// None: never called.
        pub fn address(&self, _: &Tensor) -> Result<u64> {
            match self.0 {}
        }

        /// Queues a product.
        ///
        /// # Errors
        /// None: never called.
        pub fn product(&self, _: &Tensor, _: &Tensor, _: &Tensor, _: bool) -> Result<()> {
            match self.0 {}
        }

        /// Queues a kernel.
        ///
        /// # Errors
        /// None: never called.
        pub fn launch(&self, _: Module, _: &'static str, _: Grid, _: &[Arg<'_>]) -> Result<()> {
            match self.0 {}
        }
    }
}
