# find_package(shiftadd CONFIG REQUIRED) gives
#   shiftadd::shiftadd   the C ABI (shiftadd/shiftadd.h) and its C++ layer (shiftadd/shiftadd.hpp)
#   shiftadd::text       text to tokens and back (shiftadd/shiftadd_text.h), in the same library
#   shiftadd::static     all of it as an archive, where there is one
# and sets shiftadd_PREFIX, the folder that all of it lies in. It may be moved as a whole.
get_filename_component(shiftadd_PREFIX "${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)

if(NOT CMAKE_SYSTEM_NAME STREQUAL "Linux" OR NOT CMAKE_SYSTEM_PROCESSOR MATCHES "^(@PROCESSOR@)$")
  set(shiftadd_FOUND FALSE)
  set(shiftadd_NOT_FOUND_MESSAGE
      "${shiftadd_PREFIX} is for Linux on @MACHINE@, this build is for ${CMAKE_SYSTEM_NAME} on ${CMAKE_SYSTEM_PROCESSOR}; compile with another --target.")
  return()
endif()

foreach(_shiftadd_component IN LISTS shiftadd_FIND_COMPONENTS)
  if(NOT _shiftadd_component MATCHES "^(@COMPONENTS@)$")
    set(shiftadd_FOUND FALSE)
    set(shiftadd_NOT_FOUND_MESSAGE "shiftadd has no component ${_shiftadd_component}; it has @COMPONENTS@.")
    return()
  endif()
endforeach()
unset(_shiftadd_component)

@TARGETS@
