//! CUDA devices: opened once each, with one stream for all threads, without events, and with a memory pool that keeps what
//! is freed.

#![allow(unsafe_code)]

use std::{
    collections::BTreeMap,
    env,
    sync::{Mutex, PoisonError},
};

use candle_core::{
    CudaDevice, Device,
    cuda_backend::{
        WrapErr,
        cudarc::driver::{
            result::{DriverError, device, mem_pool},
            sys::{CUmemPool_attribute as Attribute, CUmemoryPool},
        },
    },
};

use super::compiled_kernels;

/// The devices of this process by their number. They are never closed.
static OPENED: Mutex<BTreeMap<usize, OneStream>> = Mutex::new(BTreeMap::new());

/// Returns the CUDA device of this number, which the first call opens.
///
/// # Errors
/// When the driver has no such device, or a library of CUDA is missing.
pub fn open(number: usize) -> candle_core::Result<Device> {
    // A device enters the map as the last step of opening it, so a panic in between leaves a map that can be used.
    let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(OneStream(device)) = opened.get(&number) {
        return Ok(Device::Cuda(device.clone()));
    }
    let OneStream(device) = opened.entry(number).or_insert(OneStream::open(number)?);
    if compiled_kernels::are_to_be_made(|name| env::var_os(name), env::home_dir()) {
        notice!(
            "note: the driver compiles kernels for this card when they are first used, and keeps them: this once, some 20 s"
        );
    }
    Ok(Device::Cuda(device.clone()))
}

/// A device all of whose work is queued on one stream, by whichever host thread, which makes events superfluous.
struct OneStream(CudaDevice);

impl OneStream {
    /// Opens a device. Only [`open`] may call this, once for each number: `clippy.toml` refuses candle's own ways to open one.
    fn open(number: usize) -> candle_core::Result<Self> {
        // candle's other constructor takes the driver's per-thread stream, which is a different one for each host thread.
        let device = CudaDevice::new_with_stream(number)?;
        // By default cudarc makes two events for each allocation, for memory that several streams use.
        //
        // SAFETY: Without events, the caller has to see to it that no memory is used or freed on a stream before the work
        // of another stream on it is done. Here there is no other stream:
        // - candle (0.11.1, `cuda_backend/device.rs`) queues launches, copies and fills on the stream of the device, has
        //   made its cuBLAS and cuRAND handles with it, and cudarc (0.19.10, `CudaSlice`) allocates and frees on it.
        // - The stream was created for this device, so its handle means the same stream on each host thread. A stream runs
        //   its work in the order of the driver's calls, and a tensor reaches another host thread only after the calls that
        //   write it have returned.
        // - `OPENED` has one device for each number, so tensors of one GPU, which candle lets meet by the GPU's number
        //   (`storage.rs`, `same_device`), are all on its stream.
        unsafe { device.disable_event_tracking() };
        if let Some(pool) = pool(&device).w()? {
            // A pool gives all that is free back to the driver at each synchronisation, unless its threshold is above.
            set(pool, Attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, u64::MAX).w()?;
        }
        Ok(Self(device))
    }
}

/// The most bytes that tensors have held at a time since the device was opened: exact, and without what CUDA and its
/// libraries hold themselves. `None` on a device without memory pools.
///
/// # Errors
/// When the driver fails.
pub fn peak_bytes(device: &CudaDevice) -> candle_core::Result<Option<u64>> {
    let pool = pool(device).w()?;
    pool.map(|pool| get(pool, Attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH)).transpose().w()
}

/// The memory pool from which cudarc allocates, if the device has pools.
fn pool(cuda: &CudaDevice) -> Result<Option<CUmemoryPool>, DriverError> {
    let stream = cuda.cuda_stream();
    let context = stream.context();
    if !context.has_async_alloc() {
        return Ok(None);
    }
    // SAFETY: the number is that of an opened device.
    unsafe { device::get_mem_pool(context.cu_device()) }.map(Some)
}

/// Reads an attribute of a pool that is a number of bytes.
fn get(pool: CUmemoryPool, attribute: Attribute) -> Result<u64, DriverError> {
    let mut bytes = 0u64;
    // SAFETY: the pool is the current one of an opened device, and attributes in bytes are read as `cuuint64_t`.
    unsafe { mem_pool::get_attribute(pool, attribute, (&raw mut bytes).cast()) }?;
    Ok(bytes)
}

/// Sets an attribute of a pool that is a number of bytes.
fn set(pool: CUmemoryPool, attribute: Attribute, mut bytes: u64) -> Result<(), DriverError> {
    // SAFETY: as in `get`; the driver reads the number before the call returns.
    unsafe { mem_pool::set_attribute(pool, attribute, (&raw mut bytes).cast()) }
}
