// A library to preload: every device of Vulkan says that its products of four bytes at once are fast. llama.cpp takes its
// shaders with such products, which any device of Vulkan 1.3 can run, only where the driver says so, and Mesa's driver for
// the processor doesn't.

#include <dlfcn.h>
#include <string.h>
#include <vulkan/vulkan.h>

static PFN_vkGetPhysicalDeviceProperties2 of_driver;

static VKAPI_ATTR void VKAPI_CALL with_fast_products(VkPhysicalDevice device, VkPhysicalDeviceProperties2 * properties) {
    of_driver(device, properties);
    for (VkBaseOutStructure * s = properties->pNext; s != NULL; s = s->pNext) {
        if (s->sType == VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_INTEGER_DOT_PRODUCT_PROPERTIES) {
            ((VkPhysicalDeviceShaderIntegerDotProductProperties *) s)->integerDotProduct4x8BitPackedSignedAccelerated = VK_TRUE;
        }
    }
}

// llama.cpp gets all other functions of Vulkan by this one.
VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL vkGetInstanceProcAddr(VkInstance instance, const char * name) {
    static PFN_vkGetInstanceProcAddr of_loader;
    if (of_loader == NULL) {
        of_loader = (PFN_vkGetInstanceProcAddr) dlsym(dlopen("libvulkan.so.1", RTLD_NOW), "vkGetInstanceProcAddr");
    }
    const PFN_vkVoidFunction function = of_loader(instance, name);
    if (function == NULL || strncmp(name, "vkGetPhysicalDeviceProperties2", strlen("vkGetPhysicalDeviceProperties2")) != 0) {
        return function;
    }
    of_driver = (PFN_vkGetPhysicalDeviceProperties2) function;
    return (PFN_vkVoidFunction) with_fast_products;
}
