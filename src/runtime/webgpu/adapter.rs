//! The GPU that WebGPU takes. ONNX Runtime has no function that names it, so it is found as Dawn, its implementation of WebGPU,
//! finds it where that is based on Vulkan.

use std::ffi::CStr;
use std::mem::ManuallyDrop;

use ash::vk;

use crate::runtime::shutdown;

/// A GPU, or what stands in for one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adapter {
    /// Its name.
    pub name: String,
    /// Its driver, with its version.
    pub driver: String,
    /// Whether it computes on the CPU.
    pub is_software: bool,
    /// The most bytes of one array.
    pub array_bytes: usize,
    /// Its memory in bytes; that of the whole machine where it has none of its own.
    pub memory_bytes: usize,
    /// What else it says of itself that its results may depend on.
    pub identity: String,
}

impl Adapter {
    /// Whether arrays of these lengths in bytes, the weights of a model, leave a quarter of the memory to batches. Drivers do
    /// not always survive that memory ends.
    ///
    /// # Errors
    /// Why not.
    pub fn check_room(&self, arrays: impl IntoIterator<Item = usize>) -> Result<(), String> {
        let (mut all, mut largest) = (0, 0);
        for bytes in arrays {
            all += bytes;
            largest = largest.max(bytes);
        }
        let Self {
            name,
            array_bytes,
            memory_bytes,
            ..
        } = self;
        if largest > *array_bytes {
            return Err(format!(
                "the largest weight takes {} MB, and {name} has arrays of at most {} MB",
                largest >> 20,
                array_bytes >> 20
            ));
        }
        if all > memory_bytes / 4 * 3 {
            return Err(format!(
                "the weights take {} MB, and {name} has {} MB, of which a quarter is for batches",
                all >> 20,
                memory_bytes >> 20
            ));
        }
        Ok(())
    }
}

/// The adapter that is preferred for performance: one with memory of its own, otherwise one in the processor, otherwise
/// one in software, each time the first. `None` where there is no Vulkan, as on macOS, or no adapter.
#[must_use]
pub fn find() -> Option<Adapter> {
    // Several visits: drivers register destructors when they are loaded, before which the process waits for later visits only.
    let entry = {
        let _inside = shutdown::ONNX.enter();
        // SAFETY: the loader's library runs its initialization, as it does for any program.
        unsafe { ash::Entry::load() }.ok()?
    };
    // Neither it nor drivers are ever unloaded, which some do not survive.
    let entry = ManuallyDrop::new(entry);
    // Properties of drivers are asked for with a function of this version.
    let application = vk::ApplicationInfo::default().api_version(vk::API_VERSION_1_1);
    let create = vk::InstanceCreateInfo::default().application_info(&application);
    let instance = {
        let _inside = shutdown::ONNX.enter();
        // SAFETY: the structures are complete and outlive the call.
        unsafe { entry.create_instance(&create, None) }.ok()?
    };
    let _inside = shutdown::ONNX.enter();
    // SAFETY: the instance lives until it is destroyed below, and nothing refers to it later.
    unsafe {
        let devices = instance.enumerate_physical_devices().unwrap_or_default();
        let adapters = devices.iter().map(|&device| describe(&instance, device));
        let best = adapters.min_by_key(|(kind, _)| rank(*kind));
        instance.destroy_instance(None);
        best.map(|(_, adapter)| adapter)
    }
}

/// As Dawn sorts adapters if performance is preferred.
fn rank(kind: vk::PhysicalDeviceType) -> u8 {
    match kind {
        vk::PhysicalDeviceType::DISCRETE_GPU => 0,
        vk::PhysicalDeviceType::INTEGRATED_GPU => 1,
        vk::PhysicalDeviceType::CPU => 2,
        _ => 3,
    }
}

/// # Safety
/// The device is one of the instance.
unsafe fn describe(
    instance: &ash::Instance,
    device: vk::PhysicalDevice,
) -> (vk::PhysicalDeviceType, Adapter) {
    let mut driver = vk::PhysicalDeviceDriverProperties::default();
    let mut subgroups = vk::PhysicalDeviceSubgroupProperties::default();
    let mut all = vk::PhysicalDeviceProperties2::default()
        .push_next(&mut driver)
        .push_next(&mut subgroups);
    // SAFETY: the chain is complete; a driver leaves alone what it does not know.
    unsafe { instance.get_physical_device_properties2(device, &mut all) };
    let properties = all.properties;
    let limits = properties.limits;
    // SAFETY: as above.
    let memory = unsafe { instance.get_physical_device_memory_properties(device) };
    let own = memory.memory_heaps_as_slice().iter();
    let own = own.filter(|heap| heap.flags.contains(vk::MemoryHeapFlags::DEVICE_LOCAL));
    let text = |field: Option<&CStr>| field.unwrap_or_default().to_string_lossy().into_owned();
    let driver_name = text(driver.driver_name_as_c_str().ok());
    let driver_info = text(driver.driver_info_as_c_str().ok());
    // In the driver's own format, which differs by vendor, beside what people read.
    let version = properties.driver_version;
    let adapter = Adapter {
        name: text(properties.device_name_as_c_str().ok()),
        driver: [driver_name, driver_info, format!("({version:#x})")]
            .into_iter()
            .filter(|part| !part.is_empty())
            .collect::<Vec<_>>()
            .join(" "),
        is_software: properties.device_type == vk::PhysicalDeviceType::CPU,
        array_bytes: limits.max_storage_buffer_range as usize,
        memory_bytes: own.map(|heap| heap.size).max().unwrap_or(0) as usize,
        identity: format!(
            "{:x}:{:x}, Vulkan {:x}, subgroups of {} with {:x}",
            properties.vendor_id,
            properties.device_id,
            properties.api_version,
            subgroups.subgroup_size,
            subgroups.supported_operations.as_raw()
        ),
    };
    (properties.device_type, adapter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_that_are_too_large_are_refused() {
        const MB: usize = 1 << 20;
        let gpu = Adapter {
            name: "small".to_owned(),
            driver: String::new(),
            is_software: false,
            array_bytes: 128 * MB,
            memory_bytes: 1024 * MB,
            identity: String::new(),
        };
        assert_eq!(gpu.check_room([128 * MB; 6]), Ok(()));
        let too_long = gpu.check_room([MB, 129 * MB]).unwrap_err();
        assert!(
            too_long.contains("129 MB") && too_long.contains("128 MB"),
            "{too_long}"
        );
        let too_much = gpu.check_room([128 * MB; 7]).unwrap_err();
        assert!(
            too_much.contains("896 MB") && too_much.contains("1024 MB"),
            "{too_much}"
        );
    }
}
