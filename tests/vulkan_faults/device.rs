//! What the faults change in what a device says of itself. Needs the environment that `npm test -- --only=webgpu` makes.

use std::env;
use std::ffi::{CStr, CString, c_char, c_void};
use std::fs;
use std::mem::transmute;
use std::ptr::{null, null_mut};

type Handle = *mut c_void;
type Outcome = i32;
type Lookup = unsafe extern "system" fn(Handle, *const c_char) -> *mut c_void;

/// `VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO`.
const INSTANCE_CREATE_INFO: u32 = 1;
/// `VK_STRUCTURE_TYPE_APPLICATION_INFO`.
const APPLICATION_INFO: u32 = 0;
/// `VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2`.
const FEATURES_2: u32 = 1_000_059_000;
/// `VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2`.
const PROPERTIES_2: u32 = 1_000_059_001;
/// `VK_API_VERSION_1_1`, which has the functions whose names end with 2.
const VERSION_1_1: u32 = (1 << 22) | (1 << 12);
/// `VkPhysicalDeviceType`.
const DISCRETE_GPU: u32 = 2;
const CPU: u32 = 4;
/// Where `deviceType` is in `VkPhysicalDeviceProperties`, and the features of dynamic indexing are in
/// `VkPhysicalDeviceFeatures`, in units of four bytes.
const DEVICE_TYPE: usize = 4;
const DYNAMIC_INDEXING: std::ops::Range<usize> = 33..37;

#[repr(C)]
struct ApplicationInfo {
    structure_type: u32,
    next: *const c_void,
    application_name: *const c_char,
    application_version: u32,
    engine_name: *const c_char,
    engine_version: u32,
    api_version: u32,
}

#[repr(C)]
struct InstanceInfo {
    structure_type: u32,
    next: *const c_void,
    flags: u32,
    application: *const ApplicationInfo,
    layer_count: u32,
    layers: *const *const c_char,
    extension_count: u32,
    extensions: *const *const c_char,
}

/// Room for each of the structures, which are smaller.
#[repr(C)]
struct Extensible {
    structure_type: u32,
    next: *mut c_void,
    content: [u32; 512],
}

struct Vulkan {
    lookup: Lookup,
    instance: Handle,
}

impl Vulkan {
    fn open(library: &CStr) -> Self {
        // SAFETY: a Vulkan loader, whose one export has this type.
        let lookup: Lookup = unsafe {
            let library = libc::dlopen(library.as_ptr(), libc::RTLD_NOW);
            assert!(!library.is_null());
            transmute(libc::dlsym(library, c"vkGetInstanceProcAddr".as_ptr()))
        };
        let application = ApplicationInfo {
            structure_type: APPLICATION_INFO,
            next: null(),
            application_name: null(),
            application_version: 0,
            engine_name: null(),
            engine_version: 0,
            api_version: VERSION_1_1,
        };
        let info = InstanceInfo {
            structure_type: INSTANCE_CREATE_INFO,
            next: null(),
            flags: 0,
            application: &raw const application,
            layer_count: 0,
            layers: null(),
            extension_count: 0,
            extensions: null(),
        };
        let mut instance = null_mut();
        // SAFETY: the function has this type, and the structures are complete.
        let outcome = unsafe {
            let create: unsafe extern "system" fn(
                *const InstanceInfo,
                *const c_void,
                *mut Handle,
            ) -> Outcome = transmute(lookup(null_mut(), c"vkCreateInstance".as_ptr()));
            create(&raw const info, null(), &raw mut instance)
        };
        assert_eq!(outcome, 0);
        Self { lookup, instance }
    }

    fn function(&self, name: &CStr) -> *mut c_void {
        // SAFETY: the instance lives until the process ends.
        let function = unsafe { (self.lookup)(self.instance, name.as_ptr()) };
        assert!(!function.is_null(), "{name:?}");
        function
    }

    fn devices(&self) -> Vec<Handle> {
        let mut devices = vec![null_mut(); 8];
        let mut count = 8;
        // SAFETY: the function has this type, and there is room for eight devices.
        let outcome = unsafe {
            let enumerate: unsafe extern "system" fn(Handle, *mut u32, *mut Handle) -> Outcome =
                transmute(self.function(c"vkEnumeratePhysicalDevices"));
            enumerate(self.instance, &raw mut count, devices.as_mut_ptr())
        };
        assert_eq!(outcome, 0);
        devices.truncate(count as usize);
        devices
    }

    /// What a function writes about a device.
    fn of_device(&self, name: &CStr, device: Handle) -> [u32; 512] {
        let mut content = [0; 512];
        // SAFETY: the functions that are named here have this type, and write less.
        unsafe {
            let get: unsafe extern "system" fn(Handle, *mut u32) = transmute(self.function(name));
            get(device, content.as_mut_ptr());
        }
        content
    }

    /// The same of a function whose structure can be extended.
    fn of_device2(&self, name: &CStr, structure_type: u32, device: Handle) -> [u32; 512] {
        let mut structure = Extensible {
            structure_type,
            next: null_mut(),
            content: [0; 512],
        };
        // SAFETY: as in `of_device`.
        unsafe {
            let get: unsafe extern "system" fn(Handle, *mut Extensible) =
                transmute(self.function(name));
            get(device, &raw mut structure);
        }
        structure.content
    }
}

#[test]
fn a_device_says_what_the_faults_make_of_it() {
    let library =
        env::var("SEMANTIC_SEARCH_VULKAN_FAULTS").expect("the library, as npm test builds it");
    let folder = env::temp_dir().join(format!("vulkan-faults-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let switches = ["none", "old", "discrete"].map(|fault| folder.join(fault));
    let [none, old, discrete] = &switches;
    let faults = switches.each_ref().map(|switch| {
        let name = switch.file_name().unwrap().to_str().unwrap();
        format!("{name}={}", switch.display())
    });
    // SAFETY: the only test of this process, and nothing reads the environment meanwhile.
    unsafe { env::set_var("VULKAN_FAULTS", faults.join(",")) };
    let vulkan = Vulkan::open(&CString::new(library).unwrap());
    let [device] = vulkan.devices()[..] else {
        panic!("not the software GPU alone");
    };

    let device_types = || {
        [
            vulkan.of_device(c"vkGetPhysicalDeviceProperties", device)[DEVICE_TYPE],
            vulkan.of_device2(c"vkGetPhysicalDeviceProperties2", PROPERTIES_2, device)[DEVICE_TYPE],
        ]
    };
    assert_eq!(device_types(), [CPU; 2]);
    fs::write(discrete, "").unwrap();
    assert_eq!(device_types(), [DISCRETE_GPU; 2]);
    fs::remove_file(discrete).unwrap();
    assert_eq!(device_types(), [CPU; 2]);

    let features = || {
        [
            vulkan.of_device(c"vkGetPhysicalDeviceFeatures", device),
            vulkan.of_device2(c"vkGetPhysicalDeviceFeatures2", FEATURES_2, device),
        ]
    };
    let mut expected = features();
    for features in &mut expected {
        assert_eq!(features[DYNAMIC_INDEXING], [1; 4]);
        features[DYNAMIC_INDEXING].fill(0);
    }
    fs::write(old, "").unwrap();
    assert_eq!(features(), expected);

    fs::write(none, "").unwrap();
    assert!(vulkan.devices().is_empty());
    fs::remove_dir_all(&folder).unwrap();
    assert_eq!(vulkan.devices(), [device]);
}
