# Records every target of a CMake project: `include(Katana)` or `find_package(Katana)`, after project().
#
# Compiles and links go through katana-cc by way of the launcher properties, so that the compiler, its detection and its
# probes stay as they are.  The store is .katana in the top source folder; the environment's KATANA_DIR moves it.
# KATANA_DISABLE=ON at configure time leaves the project alone.
#
# Generators: Ninja and Makefiles.  CMake before 3.21 has no linker launcher: there -B and a launch rule do its work.

if(CMAKE_VERSION VERSION_LESS 3.13)
  message(FATAL_ERROR "Katana: needs CMake 3.13 or later; with an older one, configure with CC=katana-cc CXX=katana-c++")
endif()
include_guard(DIRECTORY)
cmake_policy(VERSION 3.13) # for this file only: include() has a scope of its own

function(_katana_find_wrappers)
  # <prefix>/share/katana/cmake when installed, <checkout>/cmake otherwise.
  get_filename_component(folder "${_katana_folder}" REALPATH)
  foreach(candidate "${folder}/../../../bin" "${folder}/../.venv/bin")
    get_filename_component(candidate "${candidate}" ABSOLUTE)
    if(EXISTS "${candidate}/katana-cc")
      set(_katana_bin "${candidate}" PARENT_SCOPE)
      return()
    endif()
  endforeach()
  message(FATAL_ERROR "Katana: katana-cc is neither in ${folder}/../../../bin nor in ${folder}/../.venv/bin; "
                      "install katana-cc (in a checkout: make .venv)")
endfunction()

# Puts `words` in front of the launcher in the variable `name`, unless they are there already: katana-cc comes first, and
# runs ccache or whatever the project uses ("katana-cc ccache gcc").
macro(_katana_prepend name)
  if(NOT "${${name}}" MATCHES "katana-c")
    set(${name} ${ARGN} ${${name}})
  endif()
endmacro()

set(_katana_folder "${CMAKE_CURRENT_LIST_DIR}")
if(NOT KATANA_DISABLE)
  if(NOT CMAKE_GENERATOR MATCHES "Ninja|Makefiles")
    message(FATAL_ERROR "Katana: the generator '${CMAKE_GENERATOR}' has no launchers; use Ninja or Unix Makefiles")
  endif()
  _katana_find_wrappers()
  find_program(KATANA_ENV env)
  mark_as_advanced(KATANA_ENV)
  set(_katana_environment "${KATANA_ENV}" "KATANA_PROJECT=${CMAKE_SOURCE_DIR}")
  get_property(_katana_languages GLOBAL PROPERTY ENABLED_LANGUAGES)
  foreach(_katana_language C CXX)
    if(NOT _katana_language IN_LIST _katana_languages)
      continue()
    endif()
    if(CMAKE_${_katana_language}_COMPILER MATCHES "/katana-c[^/]*$")
      continue() # CC=katana-cc does it all
    endif()
    _katana_prepend(CMAKE_${_katana_language}_COMPILER_LAUNCHER "${_katana_bin}/katana-cc")
    if(NOT CMAKE_VERSION VERSION_LESS 3.21)
      _katana_prepend(CMAKE_${_katana_language}_LINKER_LAUNCHER ${_katana_environment} "${_katana_bin}/katana-cc")
    endif()
  endforeach()
  if(CMAKE_VERSION VERSION_LESS 3.21)
    get_filename_component(_katana_libexec "${_katana_bin}/../libexec/katana" ABSOLUTE)
    add_link_options("-B${_katana_libexec}/")
    get_property(_katana_rule DIRECTORY PROPERTY RULE_LAUNCH_LINK)
    if(NOT _katana_rule MATCHES "KATANA_PROJECT")
      # One string, which the shell splits; and the rule runs `ar` too, which env does not mind.
      set_property(DIRECTORY PROPERTY RULE_LAUNCH_LINK "\"${KATANA_ENV}\" \"KATANA_PROJECT=${CMAKE_SOURCE_DIR}\" ${_katana_rule}")
    endif()
  endif()
endif()
