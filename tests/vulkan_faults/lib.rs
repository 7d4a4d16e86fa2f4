//! Stands in for `libvulkan.so.1`, and makes a GPU fail in ways that no software GPU does by itself.
//!
//! Programs ask a Vulkan loader for `vkGetInstanceProcAddr`, and get all other functions through it. This one passes
//! everything to the loader whose path is `VULKAN_LOADER`, except where one of the faults in `VULKAN_FAULTS` is on. These
//! are separated by commas; `lost=/tmp/switch` is on while there is a file `/tmp/switch`, `lost` always.
//!
//! | fault | effect |
//! |---|---|
//! | `none` | there is no device |
//! | `old` | the device has no arrays of buffers and images that are indexed dynamically, which WebGPU requires |
//! | `whole` | the device has no subgroups that programs can use, so that each runs as a whole |
//! | `discrete` | the device says that it is a discrete GPU |
//! | `wrong` | in the first half of what is copied to the CPU, every four bytes are the float32 1.0 |
//! | `lost` | what is submitted is not run: the device is lost |
//! | `memory` | device memory cannot be allocated |
//! | `slow` | every submission takes 50 ms more |

use std::collections::HashSet;
use std::ffi::{CStr, CString, c_char, c_void};
use std::path::PathBuf;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// `VkInstance`, `VkPhysicalDevice`, `VkDevice`, `VkQueue` or `VkCommandBuffer`.
type Handle = *mut c_void;
/// `VkBuffer`, unlike these a number.
type Buffer = u64;
/// Any function; `None` where there is none of the name. Whoever calls it knows its type.
type Function = Option<unsafe extern "system" fn()>;
/// `VkResult`.
type Outcome = i32;

const SUCCESS: Outcome = 0;
const OUT_OF_DEVICE_MEMORY: Outcome = -2;
const DEVICE_LOST: Outcome = -4;

/// `VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU`.
const DISCRETE_GPU: u32 = 2;
/// `VK_BUFFER_USAGE_TRANSFER_DST_BIT`.
const TRANSFER_DESTINATION: u32 = 0x2;

const WRONG_NUMBER: u32 = 1.0_f32.to_bits();

/// `VkPhysicalDeviceFeatures`: a boolean for each feature.
type Features = [u32; 55];
/// `shaderUniformBufferArrayDynamicIndexing`, and the same of sampled images, storage buffers and storage images.
const DYNAMIC_INDEXING: std::ops::Range<usize> = 33..37;

/// `VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_PROPERTIES`.
const SUBGROUP_PROPERTIES: u32 = 1_000_094_000;

/// `VkPhysicalDeviceSubgroupProperties`, as far as it is changed.
#[repr(C)]
struct SubgroupProperties {
    _size_and_stages: [u32; 2],
    operations: u32,
}

/// `VkPhysicalDeviceProperties`, as far as it is changed.
#[repr(C)]
struct Properties {
    _versions_and_ids: [u32; 4],
    device_type: u32,
}

/// `VkPhysicalDeviceFeatures2` or `VkPhysicalDeviceProperties2`.
#[repr(C)]
struct Extensible<T> {
    structure_type: u32,
    next: *mut c_void,
    content: T,
}

/// The beginning of `VkBufferCreateInfo`.
#[repr(C)]
struct BufferInfo {
    _structure_type: u32,
    _next: *const c_void,
    _flags: u32,
    _size: u64,
    usage: u32,
}

/// `VkBufferCopy`, in bytes.
#[repr(C)]
struct Region {
    source_offset: u64,
    destination_offset: u64,
    size: u64,
}

/// The faults there are.
const NAMES: [&str; 8] = [
    "none", "old", "whole", "discrete", "wrong", "lost", "memory", "slow",
];

struct Fault {
    name: String,
    /// The fault is on while this file is there; always where there is none.
    switch: Option<PathBuf>,
}

static FAULTS: LazyLock<Vec<Fault>> = LazyLock::new(|| {
    let listed = std::env::var("VULKAN_FAULTS").unwrap_or_default();
    let faults = listed.split(',').filter(|fault| !fault.is_empty());
    let parsed = faults.map(|fault| {
        let (name, switch) = match fault.split_once('=') {
            Some((name, switch)) => (name, Some(PathBuf::from(switch))),
            None => (fault, None),
        };
        // Which ends the process: a test without its fault would prove nothing.
        assert!(
            NAMES.contains(&name),
            "VULKAN_FAULTS: {name:?} is none of {NAMES:?}"
        );
        Fault {
            name: name.to_owned(),
            switch,
        }
    });
    parsed.collect()
});

fn is_on(name: &str) -> bool {
    let mut named = FAULTS.iter().filter(|fault| fault.name == name);
    named.any(|fault| fault.switch.as_ref().is_none_or(|file| file.exists()))
}

/// What the loader exports under a name. Its functions find the device by their first argument, so there is one of each.
fn real(name: &CStr) -> *mut c_void {
    static LOADER: LazyLock<usize> = LazyLock::new(|| {
        let path = std::env::var("VULKAN_LOADER").unwrap_or_default();
        let file = CString::new(path.as_str()).unwrap_or_default();
        // SAFETY: the path ends with NUL.
        let loader = unsafe { libc::dlopen(file.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        assert!(
            !path.is_empty() && !loader.is_null(),
            "VULKAN_LOADER: {path:?} is no library"
        );
        loader as usize
    });
    // SAFETY: the loader is open and is never closed; the name ends with NUL.
    let function = unsafe { libc::dlsym(*LOADER as *mut c_void, name.as_ptr()) };
    assert!(!function.is_null(), "VULKAN_LOADER has no {name:?}");
    function
}

/// Calls a function of the loader.
macro_rules! call_real {
    ($name:literal, ($($argument:ident: $type:ty),*) $(-> $result:ty)?) => {{
        let function = real($name);
        // SAFETY: the type is that of the function in the Vulkan specification, and the arguments are the caller's or
        // made like them.
        unsafe {
            let function: unsafe extern "system" fn($($type),*) $(-> $result)? = std::mem::transmute(function);
            function($($argument),*)
        }
    }};
}

/// The replacement of a function. What is not replaced, or what the loader does not have, stays as it is.
fn replaced(name: *const c_char, found: Function) -> Function {
    /// The type of a function is given up where the caller expects none.
    macro_rules! replacement {
        ($function:ident) => {
            // SAFETY: pointers to functions have one size; the caller calls it with the type that belongs to its name.
            Some(unsafe { std::mem::transmute::<*const (), unsafe extern "system" fn()>($function as *const ()) })
        };
    }
    found?;
    // SAFETY: Vulkan requires a string that ends with NUL; a loader that was given none has found nothing.
    match unsafe { CStr::from_ptr(name) }.to_bytes() {
        b"vkGetInstanceProcAddr" => replacement!(vkGetInstanceProcAddr),
        b"vkGetDeviceProcAddr" => replacement!(get_device_proc_addr),
        b"vkEnumeratePhysicalDevices" => replacement!(enumerate_physical_devices),
        b"vkGetPhysicalDeviceFeatures" => replacement!(features),
        b"vkGetPhysicalDeviceFeatures2" | b"vkGetPhysicalDeviceFeatures2KHR" => {
            replacement!(features2)
        }
        b"vkGetPhysicalDeviceProperties" => replacement!(properties),
        b"vkGetPhysicalDeviceProperties2" | b"vkGetPhysicalDeviceProperties2KHR" => {
            replacement!(properties2)
        }
        b"vkAllocateMemory" => replacement!(allocate_memory),
        b"vkCreateBuffer" => replacement!(create_buffer),
        b"vkCmdCopyBuffer" => replacement!(copy_buffer),
        b"vkQueueSubmit" => replacement!(queue_submit),
        _ => found,
    }
}

/// The one function that programs look up by name.
///
/// # Safety
///
/// As in the Vulkan specification.
#[unsafe(no_mangle)]
#[allow(non_snake_case, reason = "the name in Vulkan")]
pub unsafe extern "system" fn vkGetInstanceProcAddr(
    instance: Handle,
    name: *const c_char,
) -> Function {
    let found =
        call_real!(c"vkGetInstanceProcAddr", (instance: Handle, name: *const c_char) -> Function);
    replaced(name, found)
}

unsafe extern "system" fn get_device_proc_addr(device: Handle, name: *const c_char) -> Function {
    let found =
        call_real!(c"vkGetDeviceProcAddr", (device: Handle, name: *const c_char) -> Function);
    replaced(name, found)
}

unsafe extern "system" fn enumerate_physical_devices(
    instance: Handle,
    count: *mut u32,
    devices: *mut Handle,
) -> Outcome {
    if is_on("none") {
        // SAFETY: the caller's count, which Vulkan requires.
        unsafe { *count = 0 };
        return SUCCESS;
    }
    call_real!(
        c"vkEnumeratePhysicalDevices",
        (instance: Handle, count: *mut u32, devices: *mut Handle) -> Outcome
    )
}

unsafe extern "system" fn features(device: Handle, features: *mut Features) {
    call_real!(c"vkGetPhysicalDeviceFeatures", (device: Handle, features: *mut Features));
    // SAFETY: the loader has written to it.
    remove_features(unsafe { &mut *features });
}

unsafe extern "system" fn features2(device: Handle, features: *mut Extensible<Features>) {
    call_real!(
        c"vkGetPhysicalDeviceFeatures2",
        (device: Handle, features: *mut Extensible<Features>)
    );
    // SAFETY: the loader has written to it.
    remove_features(unsafe { &mut (*features).content });
}

/// # Safety
///
/// A chain of structures, as Vulkan extends one by others.
unsafe fn remove_subgroups(mut structure: *mut Extensible<SubgroupProperties>) {
    // SAFETY: each structure of a chain begins like this one.
    unsafe {
        while let Some(found) = structure.as_mut() {
            if found.structure_type == SUBGROUP_PROPERTIES {
                found.content.operations = 0;
            }
            structure = found.next.cast();
        }
    }
}

fn remove_features(features: &mut Features) {
    if is_on("old") {
        features[DYNAMIC_INDEXING].fill(0);
    }
}

unsafe extern "system" fn properties(device: Handle, properties: *mut Properties) {
    call_real!(c"vkGetPhysicalDeviceProperties", (device: Handle, properties: *mut Properties));
    // SAFETY: the loader has written to it.
    change_properties(unsafe { &mut *properties });
}

unsafe extern "system" fn properties2(device: Handle, properties: *mut Extensible<Properties>) {
    call_real!(
        c"vkGetPhysicalDeviceProperties2",
        (device: Handle, properties: *mut Extensible<Properties>)
    );
    // SAFETY: the loader has written to it, and to the structures that follow.
    unsafe {
        change_properties(&mut (*properties).content);
        if is_on("whole") {
            remove_subgroups((*properties).next.cast());
        }
    }
}

fn change_properties(properties: &mut Properties) {
    if is_on("discrete") {
        properties.device_type = DISCRETE_GPU;
    }
}

unsafe extern "system" fn allocate_memory(
    device: Handle,
    info: *const c_void,
    allocator: *const c_void,
    memory: *mut u64,
) -> Outcome {
    if is_on("memory") {
        return OUT_OF_DEVICE_MEMORY;
    }
    call_real!(
        c"vkAllocateMemory",
        (device: Handle, info: *const c_void, allocator: *const c_void, memory: *mut u64) -> Outcome
    )
}

/// Buffers that copies are made into, and that nothing else on the GPU uses: the CPU reads them.
static READ_BY_CPU: Mutex<Option<HashSet<Buffer>>> = Mutex::new(None);

fn with_read_by_cpu<T>(work: impl FnOnce(&mut HashSet<Buffer>) -> T) -> T {
    let mut buffers = READ_BY_CPU.lock().unwrap_or_else(PoisonError::into_inner);
    work(buffers.get_or_insert_default())
}

unsafe extern "system" fn create_buffer(
    device: Handle,
    info: *const BufferInfo,
    allocator: *const c_void,
    buffer: *mut Buffer,
) -> Outcome {
    let outcome = call_real!(
        c"vkCreateBuffer",
        (device: Handle, info: *const BufferInfo, allocator: *const c_void, buffer: *mut Buffer) -> Outcome
    );
    if outcome == SUCCESS {
        // SAFETY: the caller's, which Vulkan requires; the loader has written the buffer.
        let (usage, buffer) = unsafe { ((*info).usage, *buffer) };
        // A destroyed buffer's number is given to later ones.
        with_read_by_cpu(|buffers| {
            if usage == TRANSFER_DESTINATION {
                buffers.insert(buffer);
            } else {
                buffers.remove(&buffer);
            }
        });
    }
    outcome
}

unsafe extern "system" fn copy_buffer(
    commands: Handle,
    source: Buffer,
    destination: Buffer,
    count: u32,
    regions: *const Region,
) {
    if !is_on("wrong") || !with_read_by_cpu(|buffers| buffers.contains(&destination)) {
        call_real!(
            c"vkCmdCopyBuffer",
            (commands: Handle, source: Buffer, destination: Buffer, count: u32, regions: *const Region)
        );
        return;
    }
    // SAFETY: Vulkan requires as many regions as the caller says.
    for region in unsafe { std::slice::from_raw_parts(regions, count as usize) } {
        // The second half is copied, the first one filled. Fills are whole numbers of four bytes.
        let (offset, length, number) =
            (region.destination_offset, region.size / 8 * 4, WRONG_NUMBER);
        let half = Region {
            source_offset: region.source_offset + length,
            destination_offset: offset + length,
            size: region.size - length,
        };
        let (one, half) = (1, &raw const half);
        call_real!(
            c"vkCmdCopyBuffer",
            (commands: Handle, source: Buffer, destination: Buffer, one: u32, half: *const Region)
        );
        if length > 0 {
            call_real!(
                c"vkCmdFillBuffer",
                (commands: Handle, destination: Buffer, offset: u64, length: u64, number: u32)
            );
        }
    }
}

unsafe extern "system" fn queue_submit(
    queue: Handle,
    count: u32,
    submissions: *const c_void,
    fence: u64,
) -> Outcome {
    if is_on("lost") {
        return DEVICE_LOST;
    }
    if is_on("slow") {
        thread::sleep(Duration::from_millis(50));
    }
    call_real!(
        c"vkQueueSubmit",
        (queue: Handle, count: u32, submissions: *const c_void, fence: u64) -> Outcome
    )
}
